{{- define "greylag.fullname" -}}
{{- if contains "greylag" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-greylag" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What web and worker are found by. */}}
{{- define "greylag.selector" -}}
app.kubernetes.io/name: greylag
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "greylag.labels" -}}
{{ include "greylag.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "greylag.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end -}}
