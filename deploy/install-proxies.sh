#!/bin/sh
# Install Stunnel, HAProxy and Nginx (with its stream module) from the distribution, where they are missing.
# SciStream starts them itself, one process a session: the distribution's services stay off.
set -eu

PATH="$PATH:/usr/sbin:/sbin"

say() { echo "install-proxies: $*" >&2; }

has_stunnel() { command -v stunnel >/dev/null || command -v stunnel4 >/dev/null; }
has_haproxy() { command -v haproxy >/dev/null; }
has_nginx() { command -v nginx >/dev/null; }
has_stream() {
    has_nginx || return 1
    nginx -V 2>&1 | tr ' ' '\n' | grep -qx -e '--with-stream' && return
    for module in /usr/lib/nginx/modules/ngx_stream_module.so /usr/lib64/nginx/modules/ngx_stream_module.so; do
        if [ -e "$module" ]; then return; fi
    done
    return 1
}

if has_stunnel && has_haproxy && has_stream; then
    exit 0
fi

root=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        say "Stunnel, HAProxy or Nginx is missing, and this is neither root nor is there sudo;" \
            "ask an administrator to run $0"
        exit 1
    fi
    root=sudo
fi

if command -v apt-get >/dev/null; then
    packages=
    has_stunnel || packages="$packages stunnel4"
    has_haproxy || packages="$packages haproxy"
    has_nginx || packages="$packages nginx"
    has_stream || packages="$packages libnginx-mod-stream"
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
elif command -v dnf >/dev/null; then
    packages=
    has_stunnel || packages="$packages stunnel"
    has_haproxy || packages="$packages haproxy"
    has_nginx || packages="$packages nginx"
    has_stream || packages="$packages nginx-mod-stream"
    say "installing$packages"
    # shellcheck disable=SC2086
    $root dnf -q install -y $packages </dev/null
else
    say "there is neither apt-get nor dnf here; install Stunnel, HAProxy and Nginx (with its stream module) by hand"
    exit 1
fi
