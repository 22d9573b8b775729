// Command validate reads rendered manifests and reports what a Kubernetes API server would refuse: unknown or
// duplicate fields, values that fail the server's validation, and pods below the "restricted" security standard.
// Warnings of the server count as refusals. It runs the API server's code, so that no schema is copied here.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	"k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"
	"k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

const namespace = "cgm"

// strategies are the checks that the API server runs when an object of a kind is created.
var strategies = map[string]rest.RESTCreateStrategy{
	"ConfigMap":               configmap.Strategy,
	"Deployment":              deployment.Strategy,
	"HorizontalPodAutoscaler": horizontalpodautoscaler.Strategy,
	"NetworkPolicy":           networkpolicy.Strategy,
	"PodDisruptionBudget":     poddisruptionbudget.Strategy,
	"Service":                 service.Strategy,
	"ServiceAccount":          serviceaccount.Strategy,
	"StatefulSet":             statefulset.Strategy,
}

func main() {
	refused := 0
	documents := yaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		for _, fault := range faults(document) {
			fmt.Println(fault)
			refused++
		}
	}
	if refused > 0 {
		os.Exit(1)
	}
}

// faults returns what is wrong with one YAML document; nothing for an empty one.
func faults(document []byte) []string {
	var content map[string]any
	if err := yaml.Unmarshal(document, &content); err == nil && len(content) == 0 {
		return nil
	}
	object, kind, err := decode(document)
	if err != nil {
		return []string{err.Error()}
	}
	found := append(created(object, kind), insecure(object)...)
	for i, fault := range found {
		found[i] = fmt.Sprintf("%s: %s", kind.Kind, fault)
	}
	return found
}

// decode reads a document into the type of its kind; unknown and duplicate fields are errors.
func decode(document []byte) (runtime.Object, *schema.GroupVersionKind, error) {
	scheme := legacyscheme.Scheme
	strict := json.SerializerOptions{Yaml: true, Strict: true}
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, strict).Decode(document, nil, nil)
}

// created returns the errors and warnings of the API server for the creation of an object.
func created(object runtime.Object, kind *schema.GroupVersionKind) []string {
	if _, ok := object.(*monitoring.ServiceMonitor); ok {
		return nil // a custom resource has no checks beyond its type, which decode has checked
	}
	strategy, ok := strategies[kind.Kind]
	if !ok {
		return []string{"no strategy for this kind; add it to the table"}
	}
	scheme := legacyscheme.Scheme
	scheme.Default(object)
	internal, err := scheme.ConvertToVersion(object, runtime.InternalGroupVersioner)
	if err != nil {
		return []string{err.Error()}
	}
	accessor, err := meta.Accessor(internal)
	if err != nil {
		return []string{err.Error()}
	}
	accessor.SetNamespace(namespace)
	rest.FillObjectMetaSystemFields(accessor)
	if made, ok := internal.(*core.Service); ok && made.Spec.ClusterIP != "" {
		made.Spec.ClusterIPs = []string{made.Spec.ClusterIP} // as the server's storage of Services does before
	}
	info := &request.RequestInfo{APIGroup: kind.Group, APIVersion: kind.Version, Namespace: namespace, Verb: "create"}
	ctx := request.WithRequestInfo(request.WithNamespace(context.Background(), namespace), info)
	if err := rest.BeforeCreate(strategy, ctx, internal); err != nil {
		return []string{err.Error()}
	}
	return strategy.WarningsOnCreate(ctx, internal)
}

// insecure returns how the pods of a Deployment or a StatefulSet violate the "restricted" pod security standard.
func insecure(object runtime.Object) []string {
	var pod v1.PodTemplateSpec
	switch workload := object.(type) {
	case *apps.Deployment:
		pod = workload.Spec.Template
	case *apps.StatefulSet:
		pod = workload.Spec.Template
	default:
		return nil
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return []string{err.Error()}
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	var found []string
	for _, result := range evaluator.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec) {
		if !result.Allowed {
			found = append(found, fmt.Sprintf("%s: %s", result.ForbiddenReason, result.ForbiddenDetail))
		}
	}
	return found
}

func init() {
	if err := monitoring.AddToScheme(legacyscheme.Scheme); err != nil {
		panic(err)
	}
}
