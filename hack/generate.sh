#!/usr/bin/env bash
# Writes the files that are generated from the models; with --check only says whether they are up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

target=crds/analyticspipelines.yaml
fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
.venv/bin/python -m tidemill_operator.crd > "$fresh"
if [[ ${1:-} == --check ]]; then
  diff -u "$target" "$fresh" || { echo "$target is out of date: run make generate" >&2; exit 1; }
else
  cat "$fresh" > "$target"
fi
