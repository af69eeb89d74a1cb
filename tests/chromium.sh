#!/usr/bin/env bash
# Install the browser that the tests of pages drive (Debian; as root). Continuous integration calls this; the tests never do.
set -euo pipefail
if command -v chromium >/dev/null; then
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core >/dev/null
