#!/usr/bin/env bash
# The tests with the newest Python at hand and the newest release of everything else: `make test-newest`.
# Newer JAX needs newer Python than many machines have. Python is taken from $NEWEST_PYTHON, else from the path (3.14,
# 3.13, 3.12), else from a root of Debian's testing release, which debootstrap makes (as root; half a gigabyte in
# .newest/, kept for the next run; DEBIAN_ROOT=1 takes it in any case). Arguments are handed to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

newest_python() {
  [ -z "${DEBIAN_ROOT:-}" ] || return 0
  for name in ${NEWEST_PYTHON:-python3.14 python3.13 python3.12}; do
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
}

# In an environment made anew, so that nothing older is kept.
run_tests() {
  local python=$1
  shift
  rm -rf .venv-newest
  "$python" -m venv .venv-newest
  .venv-newest/bin/python -m pip install --quiet -e '.[dev]'
  .venv-newest/bin/python - <<'PYTHON'
import platform
from importlib.metadata import version

packages = "jax flax optax diffrax equinox numpy pillow".split()
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in packages), flush=True)
PYTHON
  .venv-newest/bin/python -m pytest "$@"
}

make_root() {
  command -v debootstrap >/dev/null || {
    echo "test-newest: no Python 3.12 or newer here; install one, name it in NEWEST_PYTHON, or install debootstrap" >&2
    exit 2
  }
  rm -rf "$1"
  mkdir -p "$1"
  # The rules of "sid" hold for newer suites, whose names an older debootstrap does not know.
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,git,make testing "$1" "${DEBIAN_MIRROR:-}" sid
  touch "$1/.made"
}

if [ "${1:-}" = --in-root ]; then
  shift
  run_tests python3 "$@"
  exit
fi
[ $# -gt 0 ] || set -- -m "not slow"
python=$(newest_python)
if [ -n "$python" ]; then
  run_tests "$python" "$@"
  exit
fi
root=$PWD/.newest/root
[ -e "$root/.made" ] || make_root "$root"
# The machine's own way to the package index.
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
  [ ! -e "$file" ] || cp -L "$file" "$root$file"
done
rm -rf "$root/ntk-tt"
git clone --quiet . "$root/ntk-tt"
# Mounts in a namespace of their own end with the run.
unshare --mount bash -c 'mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/dev/shm" && exec chroot "$0" \
  env -u PIP_FIND_LINKS HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin bash /ntk-tt/tests/newest.sh --in-root "$@"' "$root" "$@"
