package cgm;

import ca.uhn.fhir.batch2.jobs.config.Batch2JobsConfig;
import ca.uhn.fhir.jpa.api.config.ThreadPoolFactoryConfig;
import ca.uhn.fhir.jpa.batch2.JpaBatch2Config;
import ca.uhn.fhir.jpa.config.r4.JpaR4Config;
import ca.uhn.fhir.jpa.subscription.channel.config.SubscriptionChannelConfig;
import ca.uhn.fhir.jpa.subscription.match.config.SubscriptionProcessorConfig;
import ca.uhn.fhir.jpa.subscription.match.config.WebsocketDispatcherConfig;
import ca.uhn.fhir.jpa.subscription.submit.config.SubscriptionSubmitterConfig;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.autoconfigure.elasticsearch.ElasticsearchRestClientAutoConfiguration;
import org.springframework.boot.autoconfigure.quartz.QuartzAutoConfiguration;
import org.springframework.boot.autoconfigure.thymeleaf.ThymeleafAutoConfiguration;
import org.springframework.context.annotation.Import;
import org.springframework.core.env.SimpleCommandLinePropertySource;
import org.springframework.transaction.annotation.EnableTransactionManagement;

/** A HAPI FHIR R4 JPA server for tests: {@code java -jar hapi.jar --port=8081 --db=jdbc:h2:file:/tmp/store}. */
@SpringBootApplication(
    exclude = {
      ElasticsearchRestClientAutoConfiguration.class,
      QuartzAutoConfiguration.class, // HAPI has its own Quartz scheduler
      ThymeleafAutoConfiguration.class
    })
@EnableTransactionManagement
@Import({
  JpaR4Config.class,
  JpaBatch2Config.class,
  Batch2JobsConfig.class,
  ThreadPoolFactoryConfig.class,
  SubscriptionChannelConfig.class,
  SubscriptionProcessorConfig.class,
  SubscriptionSubmitterConfig.class,
  WebsocketDispatcherConfig.class
})
public class Hapi {
  public static void main(String[] args) {
    String owner = new SimpleCommandLinePropertySource(args).getProperty("owner");
    if (owner != null) {
      endWith(Long.parseLong(owner));
    }
    SpringApplication.run(Hapi.class, args);
  }

  /** Ends this process as soon as the process {@code pid} has ended. */
  private static void endWith(long pid) {
    Runnable end = () -> Runtime.getRuntime().halt(0);
    ProcessHandle.of(pid).ifPresentOrElse(owner -> owner.onExit().thenRun(end), end);
  }
}
