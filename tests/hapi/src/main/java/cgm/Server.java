package cgm;

import ca.uhn.fhir.context.support.IValidationSupport;
import ca.uhn.fhir.jpa.api.config.JpaStorageSettings;
import ca.uhn.fhir.jpa.api.dao.IFhirSystemDao;
import ca.uhn.fhir.jpa.provider.DiffProvider;
import ca.uhn.fhir.jpa.provider.IJpaSystemProvider;
import ca.uhn.fhir.jpa.provider.JpaCapabilityStatementProvider;
import ca.uhn.fhir.jpa.provider.ValueSetOperationProvider;
import ca.uhn.fhir.jpa.search.DatabaseBackedPagingProvider;
import ca.uhn.fhir.narrative2.NullNarrativeGenerator;
import ca.uhn.fhir.rest.server.ApacheProxyAddressStrategy;
import ca.uhn.fhir.rest.server.RestfulServer;
import ca.uhn.fhir.rest.server.interceptor.CorsInterceptor;
import ca.uhn.fhir.rest.server.interceptor.ResponseHighlighterInterceptor;
import ca.uhn.fhir.rest.server.provider.ResourceProviderFactory;
import ca.uhn.fhir.rest.server.util.ISearchParamRegistry;
import java.util.List;
import org.springframework.beans.factory.config.AutowireCapableBeanFactory;
import org.springframework.boot.web.servlet.ServletRegistrationBean;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.web.cors.CorsConfiguration;

/** The FHIR server under /fhir, configured as by the starter; its links follow X-Forwarded-* headers. */
@Configuration
class Server {
  @Bean
  RestfulServer restfulServer(
      IFhirSystemDao<?, ?> dao,
      IJpaSystemProvider system,
      ResourceProviderFactory resources,
      ValueSetOperationProvider valueSets,
      DiffProvider diff,
      DatabaseBackedPagingProvider paging,
      JpaStorageSettings settings,
      ISearchParamRegistry parameters,
      IValidationSupport validation) {
    dao.getContext().setNarrativeGenerator(new NullNarrativeGenerator());
    RestfulServer server = new RestfulServer(dao.getContext());
    server.registerProviders(resources.createProviders());
    server.registerProviders(system, valueSets, diff);
    JpaCapabilityStatementProvider capabilities =
        new JpaCapabilityStatementProvider(server, dao, settings, parameters, validation);
    capabilities.setImplementationDescription("HAPI FHIR R4 Server");
    server.setServerConformanceProvider(capabilities);
    server.setDefaultPrettyPrint(true);
    server.setPagingProvider(paging);
    server.registerInterceptor(new ResponseHighlighterInterceptor());
    server.registerInterceptor(cors());
    server.setServerAddressStrategy(ApacheProxyAddressStrategy.forHttp());
    return server;
  }

  private static CorsInterceptor cors() {
    CorsConfiguration cors = new CorsConfiguration();
    cors.addAllowedOriginPattern("*");
    cors.setAllowedHeaders(List.of("Origin", "Accept", "Content-Type", "Authorization", "Cache-Control", "Prefer"));
    cors.setExposedHeaders(List.of("Location", "Content-Location"));
    cors.setAllowedMethods(List.of("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"));
    cors.setAllowCredentials(true);
    return new CorsInterceptor(cors);
  }

  @Bean
  ServletRegistrationBean<RestfulServer> servlet(RestfulServer server, AutowireCapableBeanFactory beans) {
    beans.autowireBean(server);
    ServletRegistrationBean<RestfulServer> servlet = new ServletRegistrationBean<>(server, "/fhir/*");
    servlet.setLoadOnStartup(1);
    return servlet;
  }
}
