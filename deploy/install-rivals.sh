#!/bin/sh
# Install what the benchmarks compare SciStream with: OpenSSH's server, socat, hitch and iperf3, where missing.
# `make bench` starts them itself, with throw-away keys: the distribution's services stay off.
set -eu

PATH="$PATH:/usr/sbin:/sbin"

say() { echo "install-rivals: $*" >&2; }

packages=
for pair in sshd:openssh-server socat:socat hitch:hitch iperf3:iperf3; do
    command -v "${pair%%:*}" >/dev/null || packages="$packages ${pair##*:}"
done
if [ -z "$packages" ]; then
    exit 0
fi

root=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        say "missing:$packages, and this is neither root nor is there sudo; ask an administrator to run $0"
        exit 1
    fi
    root=sudo
fi
if ! command -v apt-get >/dev/null; then
    say "there is no apt-get here; install by hand:$packages"
    exit 1
fi
say "installing$packages"
# While this file says 101, Debian's packages start no service.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$root rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod 755 "$policy"
fi
$root apt-get -qq update </dev/null
# shellcheck disable=SC2086  # the list is words
$root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $packages </dev/null
