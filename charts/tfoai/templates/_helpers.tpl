{{/* Names, labels, and everything that more than one template has to agree on. */}}

{{- define "tfoai.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 44 characters: names of tests, claims and the StatefulSet's pods are longer, and 63 is the limit. */}}
{{- define "tfoai.fullname" -}}
{{- $name := include "tfoai.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- end -}}

{{- define "tfoai.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tfoai.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Selector of the server's pods: the pods of `helm test` have the labels above too, and must not get traffic. */}}
{{- define "tfoai.podSelectorLabels" -}}
{{ include "tfoai.selectorLabels" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "tfoai.labels" -}}
{{ include "tfoai.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tfoai.image" -}}
{{- $image := .Values.image -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{- define "tfoai.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tfoai.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tfoai.tokensSecretName" -}}
{{- if .Values.auth.existingSecret -}}
{{- .Values.auth.existingSecret -}}
{{- else if .Values.auth.tokens -}}
{{- printf "%s-tokens" (include "tfoai.fullname" .) -}}
{{- end -}}
{{- end -}}

{{- define "tfoai.hubSecretName" -}}
{{- if .Values.hub.existingSecret -}}
{{- .Values.hub.existingSecret -}}
{{- else if .Values.hub.token -}}
{{- printf "%s-hub" (include "tfoai.fullname" .) -}}
{{- end -}}
{{- end -}}

{{- define "tfoai.cacheClaimName" -}}
{{- default (printf "%s-cache" (include "tfoai.fullname" .)) .Values.cache.existingClaim -}}
{{- end -}}

{{- define "tfoai.isStateful" -}}
{{- if eq .Values.cache.type "perReplica" }}true{{ end -}}
{{- end -}}

{{- define "tfoai.workloadKind" -}}
{{- ternary "StatefulSet" "Deployment" (eq (include "tfoai.isStateful" .) "true") -}}
{{- end -}}

{{- define "tfoai.isScaled" -}}
{{- if or .Values.autoscaling.enabled .Values.keda.enabled }}true{{ end -}}
{{- end -}}

{{/* Whether the pods get a GPU: by count, by claim, or because `resources.limits` has another extended resource. */}}
{{- define "tfoai.hasGpu" -}}
{{- $names := dict -}}
{{- range $name, $_ := .Values.resources.limits }}{{ if contains "/" $name }}{{ $_ := set $names $name 1 }}{{ end }}{{ end -}}
{{- if or (gt (int .Values.gpu.count) 0) $names }}true{{ end -}}
{{- end -}}

{{/* The models that come with the image, for a first minute without any of one's own. */}}
{{- define "tfoai.demoModels" -}}
tfoai-demo:
  NAME: tfoai-demo
  TYPE: CausalLM
  MODEL_DEVICE: auto
  MODEL_CONFIG: {dtype: float32}
tfoai-demo-dates:
  NAME: tfoai-demo-dates
  TYPE: Seq2Seq
  MODEL_DEVICE: auto
  MODEL_CONFIG: {dtype: float32}
{{- end -}}

{{/* config.json as an object: the values, the demo models where there are none, the tokens' directory where there are tokens. */}}
{{- define "tfoai.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if not $config.MODELS -}}
{{- $_ := set $config "MODELS" (include "tfoai.demoModels" . | fromYaml) -}}
{{- end -}}
{{- if include "tfoai.tokensSecretName" . -}}
{{- $_ := set $config "BEARER_TOKENS_DIR" "/etc/tfoai/tokens" -}}
{{- end -}}
{{- toJson $config -}}
{{- end -}}

{{/* What has to roll the pods when it changes: the keys that a running server does not take up. */}}
{{- define "tfoai.configChecksum" -}}
{{- $config := include "tfoai.config" . | fromJson -}}
{{- if .Values.rollOnConfigChange -}}
{{- toJson $config | sha256sum -}}
{{- else -}}
{{- $reloads := ne (toString (default "swap" $config.MODEL_RELOAD)) "restart" -}}
{{- if hasKey $config "RELOAD_INTERVAL" -}}
{{- $reloads = and $reloads (ne (toString $config.RELOAD_INTERVAL) "0") -}}
{{- end -}}
{{- $config = omit $config "ALIASES" "BEARER_TOKENS_DIR" "DRAIN_DELAY" "DRAIN_TIMEOUT" "MAX_QUEUE" "MODEL_RELOAD" "RELOAD_INTERVAL" -}}
{{- if $reloads -}}
{{- $config = omit $config "MODELS" "ALIASES" -}}
{{- end -}}
{{- toJson $config | sha256sum -}}
{{- end -}}
{{- end -}}

{{- define "tfoai.gracePeriod" -}}
{{- $config := .Values.config -}}
{{- $needed := add (ceil (default 0 $config.DRAIN_DELAY)) (ceil (default 0 $config.DRAIN_TIMEOUT)) 15 -}}
{{- $wanted := int .Values.terminationGracePeriodSeconds -}}
{{- if and $wanted (lt $wanted (int $needed)) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d: streams would be cut. DRAIN_DELAY + DRAIN_TIMEOUT + 15 are %d; use 0 to have them added up" $wanted (int $needed)) -}}
{{- end -}}
{{- default (int $needed) $wanted -}}
{{- end -}}

{{/* The port of the probes and the metrics: one of its own, or the API's. */}}
{{- define "tfoai.adminPort" -}}
{{- ternary "admin" "http" (gt (int .Values.config.METRICS_PORT) 0) -}}
{{- end -}}

{{/* What can not be said in a schema. Included once, by the ConfigMap. */}}
{{- define "tfoai.validate" -}}
{{- $config := include "tfoai.config" . | fromJson -}}
{{- if and .Values.auth.tokens .Values.auth.existingSecret -}}
{{- fail "auth.tokens and auth.existingSecret exclude each other" -}}
{{- end -}}
{{- if and .Values.hub.token .Values.hub.existingSecret -}}
{{- fail "hub.token and hub.existingSecret exclude each other" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- fail "autoscaling.enabled and keda.enabled exclude each other: both would set the number of pods" -}}
{{- end -}}
{{- range list .Values.autoscaling .Values.keda -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "minReplicas is %d, which is more than maxReplicas, %d" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.podMonitor.enabled -}}
{{- fail "serviceMonitor.enabled and podMonitor.enabled exclude each other: everything would be counted twice" -}}
{{- end -}}
{{- if and (eq .Values.cache.type "hostPath") (not .Values.cache.hostPath) -}}
{{- fail "cache.type is hostPath: set cache.hostPath to a directory on the nodes" -}}
{{- end -}}
{{- if and (has .Values.cache.type (list "persistentVolumeClaim" "perReplica")) (not .Values.cache.size) (not .Values.cache.existingClaim) -}}
{{- fail (printf "cache.type is %s: set cache.size, 100Gi say" .Values.cache.type) -}}
{{- end -}}
{{- if and .Values.cache.existingClaim (ne .Values.cache.type "persistentVolumeClaim") -}}
{{- fail (printf "cache.existingClaim needs cache.type persistentVolumeClaim; it is %s" .Values.cache.type) -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs ingress.hosts" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: the Gateways to attach to" -}}
{{- end -}}
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.endpointPicker.name) -}}
{{- fail "inferencePool.enabled needs inferencePool.endpointPicker.name: the Service of the endpoint picker" -}}
{{- end -}}
{{- if and .Values.keda.enabled (not .Values.keda.prometheus) -}}
{{- fail "keda.enabled needs keda.prometheus: the address of a Prometheus" -}}
{{- end -}}
{{- if eq (int $config.PORT) (int $config.METRICS_PORT) -}}
{{- fail "config.PORT and config.METRICS_PORT are the same" -}}
{{- end -}}
{{- if eq (int $config.PORT) 0 -}}
{{- fail "config.PORT is 0, any free port: the Service has to know which" -}}
{{- end -}}
{{- if and (not (include "tfoai.hasGpu" .)) (not .Values.runtimeClassName) -}}
{{- range $name, $model := $config.MODELS -}}
{{- $device := default "" $model.MODEL_DEVICE -}}
{{- $map := default dict $model.MODEL_CONFIG -}}
{{- if and (ne (toString $model.ENABLED) "false") (or (hasPrefix "cuda" $device) (and (not (hasKey $model "MODEL_DEVICE")) (not (hasKey $map "device_map")))) -}}
{{- fail (printf "gpu.count is 0, and config.MODELS.%s runs on cuda, which is the default: set its MODEL_DEVICE to auto or cpu" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
