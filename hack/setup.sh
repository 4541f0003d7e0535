#!/usr/bin/env bash
# Installs what development, tests and the demo need: system packages, .venv from the lock with hashes, Kafka's jars.
# Does nothing if its inputs are unchanged. May run several times at once.
set -euo pipefail
cd "$(dirname "$0")/.."

key=$(cat hack/setup.sh hack/requirements/{bootstrap,dev}.txt operator/pyproject.toml workloads/*/pyproject.toml <(pwd) | sha256sum | cut -c1-16)
stamp=".venv/.setup-$key"

postgres_there() { command -v postgres >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null; }

browser_there() {
  local name
  for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && return 0
  done
  return 1
}

# A missing browser is an error only in CI. Elsewhere, the dashboard's tests are skipped.
browser_possible() {
  [[ -z ${CI:-} ]] || return 0
  [[ $(id -u) -eq 0 ]] || command -v sudo >/dev/null || return 1
  apt-cache show chromium-headless-shell >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in python3.11 python3 python3.12 python3.13 /usr/bin/python3; do
    if "$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

install_packages() {
  local missing=()
  postgres_there || [[ -n ${TIDEMILL_POSTGRES_URL:-} ]] || missing+=(postgresql)
  command -v redis-server >/dev/null || [[ -n ${TIDEMILL_REDIS_URL:-} ]] || missing+=(redis-server)
  command -v mosquitto >/dev/null || [[ -x /usr/sbin/mosquitto ]] || missing+=(mosquitto)
  command -v promtool >/dev/null || missing+=(prometheus)
  if [[ -z ${TIDEMILL_KAFKA_BROKERS:-} ]]; then
    command -v java >/dev/null || missing+=(openjdk-17-jre-headless)
    command -v mvn >/dev/null || [[ -n ${KAFKA_HOME:-} ]] || missing+=(maven)
  fi
  find_python >/dev/null || missing+=(python3-venv)
  browser_there || ! browser_possible || missing+=(chromium-headless-shell)
  [[ ${#missing[@]} -gt 0 ]] || return 0

  local as_root=()
  if [[ $(id -u) -ne 0 ]]; then
    command -v sudo >/dev/null || { echo "setup: not installed: ${missing[*]}; install them as root, then run this again" >&2; exit 1; }
    as_root=(sudo)
  fi
  command -v apt-get >/dev/null || { echo "setup: not installed: ${missing[*]}; install them with this system's package manager, then run this again" >&2; exit 1; }
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  if [[ " ${missing[*]} " == *" postgresql "* ]]; then
    # Keeps Debian's package from creating and starting a database cluster, which nobody would use.
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null
    "${as_root[@]}" sed -i -E 's/^#?\s*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
  fi
  local service new=()
  for service in redis-server prometheus mosquitto; do
    [[ " ${missing[*]} " == *" $service "* ]] && new+=("$service")
  done
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  # Debian's packages start these services under systemd; only `tidemill` and tests should start them.
  if [[ ${#new[@]} -gt 0 ]] && command -v systemctl >/dev/null; then
    "${as_root[@]}" systemctl disable --now "${new[@]}" >/dev/null 2>&1 || true
  fi
}

build_environment() {
  local python
  python=$(find_python) || { echo "setup: no Python 3.11 or later with venv is on the PATH; install it, then run this again" >&2; exit 1; }
  if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    echo "setup: creating .venv"
    "$python" -m venv --clear .venv
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r hack/requirements/bootstrap.txt
  local uv=(.venv/bin/python -m uv pip)
  local quietly=(--quiet --python .venv/bin/python)
  # `sync` also removes packages that are no longer locked, so that .venv equals that of a new clone.
  # Compiles the bytecode now, because PYTHONDONTWRITEBYTECODE may prevent it later.
  "${uv[@]}" sync "${quietly[@]}" --compile-bytecode --require-hashes hack/requirements/dev.txt
  "${uv[@]}" install "${quietly[@]}" --no-deps --no-build-isolation -e workloads/contract -e workloads/chassis -e workloads/ingest -e workloads/processor -e workloads/api -e operator
}

fetch_kafka() {
  [[ -n ${TIDEMILL_KAFKA_BROKERS:-} ]] && return 0
  .venv/bin/python -c 'from tidemill_operator.laptop.servers.kafka_jars import find_jars; find_jars(on_progress=print)'
}

mkdir -p .cache
exec 9>.cache/setup.lock
flock 9
install_packages
if [[ ! -e $stamp ]]; then
  build_environment
  fetch_kafka
  rm -f .venv/.setup-*
  touch "$stamp"
fi
