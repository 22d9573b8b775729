{{- define "cgm-proxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 53 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for the longest suffix within a DNS label of 63 characters. */}}
{{- define "cgm-proxy.fullname" -}}
{{- $name := include "cgm-proxy.name" . -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $both .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "cgm-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "cgm-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cgm-proxy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "cgm-proxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "cgm-proxy.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "cgm-proxy.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "cgm-proxy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* Defaults of settings that the chart has to know; a test compares them with the program's. */}}
{{- define "cgm-proxy.port" -}}
{{ dig "listen" "port" 8080 .Values.settings | int }}
{{- end }}
{{- define "cgm-proxy.opsPort" -}}
{{ dig "listen" "ops_port" 9090 .Values.settings | int }}
{{- end }}
{{- define "cgm-proxy.stopTimeout" -}}
{{ dig "listen" "stop_timeout" 30 .Values.settings | ceil | int }}
{{- end }}

{{- define "cgm-proxy.kind" -}}
{{ ternary "StatefulSet" "Deployment" .Values.jobs.enabled }}
{{- end }}

{{/* The public base URL by which other pods reach a pod; "{replica}" stands for the pod's name. */}}
{{- define "cgm-proxy.peers" -}}
{{- $path := (urlParse .Values.settings.listen.public_url).path | trimSuffix "/" -}}
http://{replica}.{{ include "cgm-proxy.fullname" . }}-ops.{{ .Release.Namespace }}.svc:{{ include "cgm-proxy.port" . }}{{ $path }}
{{- end }}

{{- define "cgm-proxy.upstreamPort" -}}
{{- $url := urlParse .Values.settings.upstream.url -}}
{{- $named := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) -}}
{{ .Values.networkPolicy.upstreamPort | default ($named | default (ternary 443 80 (eq $url.scheme "https"))) | int }}
{{- end }}

{{- define "cgm-proxy.settings" -}}
{{- $_ := required "settings.upstream.url: set it to the base URL of the FHIR server" .Values.settings.upstream.url -}}
{{- $_ := required "settings.listen.public_url: set it to the base URL that submitters use" .Values.settings.listen.public_url -}}
{{- if and .Values.rules .Values.settings.rules }}{{ fail "rules: settings.rules names another directory; use one of them" }}{{ end -}}
{{ toYaml (ternary (merge (dict "rules" "/etc/cgm-proxy-rules") .Values.settings) .Values.settings (not (empty .Values.rules))) }}
{{- end }}
