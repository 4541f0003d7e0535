#!/usr/bin/env bash
# Writes the generated files. With --check, only compares them, and fails if a file is out of date.
set -euo pipefail
cd "$(dirname "$0")/.."

fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
stale=false

# generated FILE COMMAND…: replaces FILE with the output of COMMAND, or compares both.
generated() {
  local file=$1
  shift
  "$@" > "$fresh"
  if [[ $mode == --check ]]; then
    diff -u "$file" "$fresh" || stale=true
  elif ! cmp -s "$file" "$fresh"; then
    cat "$fresh" > "$file"
    echo "wrote $file"
  fi
}

mode=${1:-}
python=.venv/bin/python
generated crds/analyticspipelines.yaml "$python" -m tidemill_operator.resource.crd
generated docs/reference/pipeline.md "$python" -m tidemill_operator.resource.reference
generated docs/reference/environment.md "$python" -m tidemill_operator.resource.environment
generated docs/reference/formats.md "$python" -m tidemill_api.formats.reference
generated docs/monitoring.md env PYTHONPATH=hack "$python" -m monitoring
generated docs/runbooks/README.md env PYTHONPATH=hack "$python" -m runbooks
for file in docs/metrics.md workloads/api/tidemill_api/static/functions.js; do
  generated "$file" env PYTHONPATH=hack "$python" -m functions "$file"
done
# Charts need copies of these files, because a chart cannot read files outside its folder.
generated charts/tidemill/files/crd.yaml cat crds/analyticspipelines.yaml
generated charts/tidemill/files/resilience.yaml cat config/resilience.yaml
for chart in tidemill dev-stack; do
  generated "charts/$chart/README.md" env PYTHONPATH=hack "$python" -m charts "$chart"
done
if $stale; then
  echo "generated files are out of date: run make generate" >&2
  exit 1
fi
