#!/bin/sh
# Install Chromium from the distribution, where it is missing: the tests of the gateway's page drive it without a screen.
set -eu

say() { echo "install-chromium: $*" >&2; }

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done

root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { say "this is neither root nor is there sudo"; exit 1; }
    root=sudo
fi

if command -v apt-get >/dev/null; then
    $root apt-get -qq update </dev/null
    $root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core </dev/null
elif command -v dnf >/dev/null; then
    $root dnf -q install -y chromium </dev/null
else
    say "there is neither apt-get nor dnf here"
    exit 1
fi
