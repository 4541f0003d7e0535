#!/usr/bin/env bash
# Writes the files that are generated from the models; with --check only says whether they are up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
stale=false

# generated FILE MODULE: the module prints the file.
generated() {
  .venv/bin/python -m "$2" > "$fresh"
  if [[ $mode == --check ]]; then
    diff -u "$1" "$fresh" || stale=true
  elif ! cmp -s "$1" "$fresh"; then
    cat "$fresh" > "$1"
    echo "wrote $1"
  fi
}

mode=${1:-}
generated crds/analyticspipelines.yaml tidemill_operator.crd
generated docs/reference/pipeline.md tidemill_operator.reference
if $stale; then
  echo "generated files are out of date: run make generate" >&2
  exit 1
fi
