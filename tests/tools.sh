#!/usr/bin/env bash
# System tools that some tests drive: `install_if_missing COMMAND PACKAGE...`, a line each. As root on Debian they are
# installed; elsewhere it says what is missing, and the tests that need it are skipped, or fail where
# TEST_REQUIRE_TOOLS=1 is set.
set -euo pipefail

updated=
install_if_missing() {
  local tool=$1
  shift
  if command -v "$tool" >/dev/null; then return; fi
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests/tools.sh: $tool is missing (Debian: apt-get install $*): tests that need it will be skipped" >&2
    return
  fi
  echo "tests/tools.sh: installing $* for $tool"
  if [ -z "$updated" ]; then apt-get update -qq && updated=yes; fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
    echo "tests/tools.sh: $* can't be installed: tests that need $tool will be skipped" >&2
}

install_if_missing chromium chromium fonts-dejavu-core
install_if_missing promtool prometheus
