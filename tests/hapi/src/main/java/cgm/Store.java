package cgm;

import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.jpa.api.IDaoRegistry;
import ca.uhn.fhir.jpa.api.config.JpaStorageSettings;
import ca.uhn.fhir.jpa.api.dao.IFhirSystemDao;
import ca.uhn.fhir.jpa.binary.api.IBinaryStorageSvc;
import ca.uhn.fhir.jpa.binstore.DatabaseBinaryContentStorageSvcImpl;
import ca.uhn.fhir.jpa.config.HibernatePropertiesProvider;
import ca.uhn.fhir.jpa.config.util.HapiEntityManagerFactoryUtil;
import ca.uhn.fhir.jpa.config.util.ResourceCountCacheUtil;
import ca.uhn.fhir.jpa.dao.FulltextSearchSvcImpl;
import ca.uhn.fhir.jpa.dao.IFulltextSearchSvc;
import ca.uhn.fhir.jpa.dao.search.HSearchSortHelperImpl;
import ca.uhn.fhir.jpa.dao.search.IHSearchSortHelper;
import ca.uhn.fhir.jpa.model.config.PartitionSettings;
import ca.uhn.fhir.jpa.model.config.SubscriptionSettings;
import ca.uhn.fhir.jpa.model.dialect.HapiFhirH2Dialect;
import ca.uhn.fhir.jpa.model.dialect.HapiFhirPostgresDialect;
import ca.uhn.fhir.jpa.provider.DaoRegistryResourceSupportedSvc;
import ca.uhn.fhir.jpa.search.DatabaseBackedPagingProvider;
import ca.uhn.fhir.jpa.search.IStaleSearchDeletingSvc;
import ca.uhn.fhir.jpa.search.StaleSearchDeletingSvcImpl;
import ca.uhn.fhir.jpa.subscription.match.deliver.email.IEmailSender;
import ca.uhn.fhir.jpa.util.ResourceCountCache;
import ca.uhn.fhir.rest.api.IResourceSupportedSvc;
import ca.uhn.fhir.rest.server.util.ISearchParamRegistry;
import jakarta.persistence.EntityManagerFactory;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import javax.sql.DataSource;
import org.hibernate.cfg.AvailableSettings;
import org.hibernate.dialect.Dialect;
import org.hibernate.search.mapper.orm.cfg.HibernateOrmMapperSettings;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.beans.factory.config.ConfigurableListableBeanFactory;
import org.springframework.boot.autoconfigure.orm.jpa.JpaProperties;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.context.annotation.Primary;
import org.springframework.orm.jpa.JpaTransactionManager;
import org.springframework.orm.jpa.LocalContainerEntityManagerFactoryBean;

/** The storage: settings equal to the defaults of HAPI's JPA starter, and the beans that HAPI requires. */
@Configuration
class Store {
  /** The starter's {@code hapi.fhir.logical_urls}: references that need not resolve. */
  private static final List<String> LOGICAL =
      List.of("terminology.hl7.org", "snomed.info", "unitsofmeasure.org", "loinc.org");

  @Bean
  JpaStorageSettings jpaStorageSettings() {
    JpaStorageSettings settings = new JpaStorageSettings();
    settings.setAllowContainsSearches(true);
    settings.setDefaultSearchParamsCanBeOverridden(true);
    settings.setEnforceReferentialIntegrityOnWrite(true);
    settings.setEnforceReferentialIntegrityOnDelete(true);
    settings.setDeleteEnabled(true);
    settings.setExpungeEnabled(true);
    settings.setFilterParameterEnabled(true);
    settings.setMatchUrlCacheEnabled(false);
    settings.setReuseCachedSearchResultsForMillis(60_000L);
    settings.setExpireSearchResultsAfterMillis(60 * 60_000L);
    settings.setSearchPreFetchThresholds(List.of(13, 503, 2003, -1));
    settings.setFetchSizeDefaultMaximum(Integer.MAX_VALUE);
    settings.setStoreMetaSourceInformation(JpaStorageSettings.StoreMetaSourceInformationEnum.NONE);
    settings.setDeferIndexingForCodesystemsOfSize(100);
    settings.setBundleBatchPoolSize(100);
    settings.setTreatReferencesAsLogical(new HashSet<>(LOGICAL.stream()
        .flatMap(host -> List.of("http://" + host + "/*", "https://" + host + "/*").stream())
        .toList()));
    return settings;
  }

  @Bean
  PartitionSettings partitionSettings() {
    return new PartitionSettings();
  }

  @Bean
  SubscriptionSettings subscriptionSettings() {
    return new SubscriptionSettings();
  }

  @Bean
  IEmailSender emailSender() {
    return details -> {};
  }

  @Primary
  @Bean
  LocalContainerEntityManagerFactoryBean entityManagerFactory(
      ConfigurableListableBeanFactory beans,
      FhirContext fhir,
      JpaStorageSettings settings,
      JpaProperties properties,
      DataSource source,
      @Value("${spring.datasource.url}") String url) {
    Map<String, String> hibernate = properties.getProperties();
    hibernate.put(AvailableSettings.DIALECT, dialectOf(url).getName());
    hibernate.put(AvailableSettings.HBM2DDL_AUTO, "update");
    hibernate.put(AvailableSettings.STATEMENT_BATCH_SIZE, "20");
    hibernate.put(AvailableSettings.USE_QUERY_CACHE, "false");
    hibernate.put(AvailableSettings.USE_SECOND_LEVEL_CACHE, "false");
    hibernate.put(AvailableSettings.USE_MINIMAL_PUTS, "false");
    hibernate.put(HibernateOrmMapperSettings.ENABLED, "false");
    LocalContainerEntityManagerFactoryBean factory =
        HapiEntityManagerFactoryUtil.newEntityManagerFactory(beans, fhir, settings);
    factory.setPersistenceUnitName("HAPI_PU");
    factory.setJpaPropertyMap(hibernate);
    factory.setDataSource(source);
    return factory;
  }

  private static Class<? extends Dialect> dialectOf(String url) {
    return url.startsWith("jdbc:postgresql:") ? HapiFhirPostgresDialect.class : HapiFhirH2Dialect.class;
  }

  @Primary
  @Bean
  HibernatePropertiesProvider hibernatePropertiesProvider(@Value("${spring.datasource.url}") String url)
      throws ReflectiveOperationException {
    Dialect dialect = dialectOf(url).getDeclaredConstructor().newInstance();
    return new HibernatePropertiesProvider() {
      @Override
      public Dialect getDialect() {
        return dialect;
      }
    };
  }

  @Primary
  @Bean
  JpaTransactionManager transactionManager(EntityManagerFactory factory) {
    return new JpaTransactionManager(factory);
  }

  @Bean
  IBinaryStorageSvc binaryStorage() {
    return new DatabaseBinaryContentStorageSvcImpl();
  }

  @Bean
  IFulltextSearchSvc fullTextSearchSvc() {
    return new FulltextSearchSvcImpl();
  }

  @Bean
  IHSearchSortHelper hSearchSortHelper(ISearchParamRegistry registry) {
    return new HSearchSortHelperImpl(registry);
  }

  @Bean
  IStaleSearchDeletingSvc staleSearchDeletingSvc() {
    return new StaleSearchDeletingSvcImpl();
  }

  @Bean
  IResourceSupportedSvc resourceSupportedSvc(IDaoRegistry registry) {
    return new DaoRegistryResourceSupportedSvc(registry);
  }

  @Bean(name = "myResourceCountsCache")
  ResourceCountCache resourceCountsCache(IFhirSystemDao<?, ?> dao) {
    return ResourceCountCacheUtil.newResourceCountCache(dao);
  }

  @Bean
  DatabaseBackedPagingProvider databaseBackedPagingProvider() {
    DatabaseBackedPagingProvider paging = new DatabaseBackedPagingProvider();
    paging.setDefaultPageSize(20);
    paging.setMaximumPageSize(Integer.MAX_VALUE);
    return paging;
  }
}
