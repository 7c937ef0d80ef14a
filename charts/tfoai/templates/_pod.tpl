{{/* The pod, for the Deployment and for the StatefulSet. */}}

{{/* What the server's container, the download and the tests have in common. */}}
{{- define "tfoai.container" -}}
image: {{ include "tfoai.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end -}}

{{- define "tfoai.hubEnv" -}}
{{- with .Values.hub.endpoint }}
- name: HF_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- if include "tfoai.hubSecretName" . }}
- name: HF_TOKEN_PATH
  value: /etc/tfoai/hub/token
{{- end }}
{{- end -}}

{{- define "tfoai.cacheMount" -}}
- name: cache
  mountPath: /var/cache/tfoai
- name: tmp
  mountPath: /tmp
{{- if include "tfoai.hubSecretName" . }}
- name: hub-token
  mountPath: /etc/tfoai/hub
  readOnly: true
{{- end }}
{{- end -}}

{{- define "tfoai.podTemplate" -}}
{{- $config := include "tfoai.config" . | fromJson -}}
metadata:
  # Without the chart's version: a release of the chart alone is no reason to roll the pods.
  labels:
    {{- include "tfoai.podSelectorLabels" . | nindent 4 }}
    {{- with .Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Of the keys that a running server does not take up by itself.
    checksum/config: {{ include "tfoai.configChecksum" . }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "tfoai.serviceAccountName" . }}
  automountServiceAccountToken: {{ .Values.automountServiceAccountToken }}
  # A Service named tfoai would put TFOAI_PORT=tcp://... into every pod of the namespace.
  enableServiceLinks: false
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ include "tfoai.gracePeriod" . }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.schedulerName }}
  schedulerName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- tpl (toYaml .) $ | nindent 4 }}
  {{- end }}
  {{- with concat .Values.tolerations (ternary .Values.gpu.tolerations list (gt (int .Values.gpu.count) 0)) }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    {{- $defaults := dict "maxSkew" 1 "whenUnsatisfiable" "ScheduleAnyway" "labelSelector" (dict "matchLabels" (include "tfoai.podSelectorLabels" $ | fromYaml)) }}
    - {{- toYaml (merge (deepCopy .) $defaults) | nindent 6 }}
    {{- end }}
  {{- end }}
  {{- if and .Values.gpu.claim.enabled (gt (int .Values.gpu.count) 0) }}
  resourceClaims:
    - name: gpu
      resourceClaimTemplateName: {{ include "tfoai.fullname" . }}-gpu
  {{- end }}
  {{- if or .Values.download.enabled .Values.extraInitContainers }}
  initContainers:
    {{- if .Values.download.enabled }}
    - name: download
      {{- include "tfoai.container" . | nindent 6 }}
      command: [/opt/tfoai/bin/python, /etc/tfoai/config/download.py]
      args: [/etc/tfoai/config/download.json]
      env:
        - name: HF_HUB_OFFLINE
          value: "0"
        {{- with include "tfoai.hubEnv" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        requests:
          cpu: 500m
          memory: 1Gi
      volumeMounts:
        - name: config
          mountPath: /etc/tfoai/config
          readOnly: true
        {{- include "tfoai.cacheMount" . | nindent 8 }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- end }}
    {{- with .Values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: tfoai
      {{- include "tfoai.container" . | nindent 6 }}
      args: [/etc/tfoai/config/config.json]
      env:
        - name: HF_HUB_OFFLINE
          value: {{ ternary "1" "0" .Values.hub.offline | quote }}
        {{- if not (or (include "tfoai.hasGpu" .) .Values.runtimeClassName) }}
        # CUDA images ask for all GPUs, and get them where NVIDIA's runtime is the nodes' default.
        - name: NVIDIA_VISIBLE_DEVICES
          value: void
        {{- end }}
        {{- with include "tfoai.hubEnv" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: {{ int $config.PORT }}
          protocol: TCP
        {{- if gt (int $config.METRICS_PORT) 0 }}
        - name: admin
          containerPort: {{ int $config.METRICS_PORT }}
          protocol: TCP
        {{- end }}
      {{- $period := 2 }}
      startupProbe:
        httpGet:
          path: /startupz
          port: {{ include "tfoai.adminPort" . }}
        periodSeconds: {{ $period }}
        timeoutSeconds: 2
        failureThreshold: {{ div (add (int .Values.probes.startupSeconds) (sub $period 1)) $period }}
      readinessProbe:
        httpGet:
          path: /readyz
          port: {{ include "tfoai.adminPort" . }}
        {{- toYaml .Values.probes.readiness | nindent 8 }}
      livenessProbe:
        httpGet:
          path: /livez
          port: {{ include "tfoai.adminPort" . }}
        {{- toYaml .Values.probes.liveness | nindent 8 }}
      {{- with .Values.lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        {{- $resources := omit (deepCopy .Values.resources) "limits" "claims" }}
        {{- $limits := deepCopy (default dict .Values.resources.limits) }}
        {{- $claims := default list .Values.resources.claims }}
        {{- if gt (int .Values.gpu.count) 0 }}
        {{- if .Values.gpu.claim.enabled }}
        {{- $claims = append $claims (dict "name" "gpu") }}
        {{- else }}
        {{- $_ := set $limits .Values.gpu.resourceName (toString (int .Values.gpu.count)) }}
        {{- end }}
        {{- end }}
        {{- if $limits }}
        {{- $_ := set $resources "limits" $limits }}
        {{- end }}
        {{- if $claims }}
        {{- $_ := set $resources "claims" $claims }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/tfoai/config
          readOnly: true
        {{- if include "tfoai.tokensSecretName" . }}
        - name: tokens
          mountPath: /etc/tfoai/tokens
          readOnly: true
        {{- end }}
        {{- include "tfoai.cacheMount" . | nindent 8 }}
        {{- if .Values.sharedMemory }}
        - name: shared-memory
          mountPath: /dev/shm
        {{- end }}
        {{- range .Values.modelVolumes }}
        - name: {{ printf "model-%s" .name }}
          mountPath: {{ .mountPath }}
          {{- with .subPath }}
          subPath: {{ . }}
          {{- end }}
          readOnly: true
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    # Directories, never subPath: those are not updated when the ConfigMap or the Secret is.
    - name: config
      configMap:
        name: {{ include "tfoai.fullname" . }}
    {{- with include "tfoai.tokensSecretName" . }}
    - name: tokens
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- with include "tfoai.hubSecretName" . }}
    - name: hub-token
      secret:
        secretName: {{ . }}
        defaultMode: 0440
        items:
          - key: {{ ternary $.Values.hub.existingSecretKey "token" (ne $.Values.hub.existingSecret "") }}
            path: token
    {{- end }}
    - name: tmp
      emptyDir: {}
    {{- if eq .Values.cache.type "emptyDir" }}
    - name: cache
      {{- if .Values.cache.size }}
      emptyDir:
        sizeLimit: {{ .Values.cache.size }}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- else if eq .Values.cache.type "persistentVolumeClaim" }}
    - name: cache
      persistentVolumeClaim:
        claimName: {{ include "tfoai.cacheClaimName" . }}
    {{- else if eq .Values.cache.type "hostPath" }}
    - name: cache
      hostPath:
        path: {{ .Values.cache.hostPath }}
        type: Directory
    {{- end }}
    {{- if .Values.sharedMemory }}
    - name: shared-memory
      emptyDir:
        medium: Memory
        sizeLimit: {{ .Values.sharedMemory }}
    {{- end }}
    {{- range .Values.modelVolumes }}
    - name: {{ printf "model-%s" .name }}
      {{- toYaml .source | nindent 6 }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The cache's claim, as an object of its own and in the StatefulSet. */}}
{{- define "tfoai.claimSpec" -}}
accessModes:
  {{- toYaml .Values.cache.accessModes | nindent 2 }}
{{- if eq .Values.cache.storageClassName "-" }}
storageClassName: ""
{{- else if .Values.cache.storageClassName }}
storageClassName: {{ .Values.cache.storageClassName }}
{{- end }}
resources:
  requests:
    storage: {{ .Values.cache.size }}
{{- end -}}
