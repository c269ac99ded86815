#!/bin/sh
# Install a gateway as a service of this host, or remove it. Run it again to upgrade: what is up to date is left alone.
set -eu

# Not the PATH of who calls: a Python of a home would be out of the service's sight.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
deploy=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tree=$(dirname -- "$deploy")
home=/opt/scistream
units=/etc/systemd/system
etc=/etc/scistream

usage() {
    cat <<EOF
Usage: deploy/setup.sh [--find-links DIR] [-- OPTIONS OF s2cs init]
       deploy/setup.sh [--find-links DIR] --node FILE
       deploy/setup.sh --uninstall [--purge]

Install this tree as the service scistream.service: proxies from the distribution, the program into $home, users,
settings in $etc where there are none, a check of everything, and the start. As root, on Debian, Ubuntu, RHEL and their kin.

  --find-links DIR  take Python packages from DIR only, without network; \`make wheelhouse\` fills one
  --node FILE       make this host a further node of a gateway, the service scistream-s2ds.service, with the settings that
                    \`s2cs nodes add\` wrote on the gateway
  --uninstall       end the service and its streams, and remove the program; settings, state and logs stay
  --purge           with --uninstall: remove these, and the users, too
  --help            say this

Example: deploy/setup.sh -- --name aps --host gw.aps.example --lan 10.1.0.5 --wan 203.0.113.5
EOF
}

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }
misused() { say "$*; see: deploy/setup.sh --help"; exit 2; }

links='' node='' uninstall=no purge=no
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit ;;
        --find-links) [ $# -gt 1 ] || misused "--find-links needs a directory"; links=$2; shift ;;
        --find-links=*) links=${1#*=} ;;
        --node) [ $# -gt 1 ] || misused "--node needs the file that \`s2cs nodes add\` wrote"; node=$2; shift ;;
        --node=*) node=${1#*=} ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        --) shift; break ;;
        *) misused "option $1 is unknown" ;;
    esac
    shift
done
[ "$purge" = no ] || [ "$uninstall" = yes ] || misused "--purge goes with --uninstall"
[ -z "$node" ] || [ $# -eq 0 ] || misused "--node takes no options of s2cs init"
[ "$uninstall" = no ] || { [ $# -eq 0 ] && [ -z "$links$node" ]; } || misused "--uninstall takes only --purge beside it"

[ "$(id -u)" -eq 0 ] || fail "this is not root; run it with sudo"
[ -d /run/systemd/system ] || fail "systemd does not run here; install with pip instead (docs/operator/install.md)"
if [ -e /var/lib/dpkg/info/scistream.list ]; then
    fail "the Debian package scistream is installed; use apt for it, or remove it first: apt-get purge scistream"
fi

for place in "$units" /usr/local/bin /opt; do
    [ ! -d "$place" ] || [ -w "$place" ] || fail "$place cannot be written to: it is read-only; nothing was changed"
done
exec 9>/run/scistream-setup.lock
flock -n 9 || fail "another setup.sh is at work on this host; wait until it has ended"

if [ "$uninstall" = yes ]; then
    sh "$deploy/systemd/remove.sh"
    rm -f "$units/scistream.service" "$units/scistream-s2ds.service" /usr/local/lib/sysusers.d/scistream.conf
    for name in s2cs s2uc; do
        case $(readlink "/usr/local/bin/$name" || :) in "$home"/*) rm -f "/usr/local/bin/$name" ;; esac
    done
    rm -rf "$home"
    systemctl daemon-reload
    if [ "$purge" = yes ]; then
        rm -rf "$etc" /var/lib/scistream /var/lib/scistream-s2ds /var/log/scistream \
            "$units/scistream.service.d" "$units/scistream-s2ds.service.d"
        for user in scistream scistream-s2ds; do
            if getent passwd "$user" >/dev/null && ! userdel "$user"; then say "user $user is kept, see above"; fi
        done
        say "removed, with settings, state and logs"
    else
        say "removed; settings in $etc, state in /var/lib/scistream and logs in /var/log/scistream are kept"
    fi
    exit
fi

if [ -n "$node" ] && [ ! -r "$node" ]; then fail "--node $node cannot be read; \`s2cs nodes add\` makes it on the gateway"; fi
if [ -n "$links" ]; then
    [ -d "$links" ] || fail "--find-links $links is no directory; make wheelhouse fills one"
    links=$(CDPATH='' cd -- "$links" && pwd)
    export PIP_NO_INDEX=1 PIP_FIND_LINKS="$links"
fi

# One proxy is enough, which the check below looks for.
"$deploy/install-proxies.sh" || say "going on with the proxies that are there"

# A release is known by what it is made of. It is made beside the one that runs, and then takes its place at once.
sum=$(cd "$tree" && find pyproject.toml constraints.txt README.md LICENSE scistream s2cs s2uc templates deploy -type f \
    ! -name '*.pyc' -exec sha256sum {} + | LC_ALL=C sort | sha256sum)
release=$home/releases/$(echo "$sum" | cut -c 1-16)
# Written when all is done, removed before anything is changed: a run that was interrupted is known by it.
stamp=$home/in-force
changed=no
[ "$(cat "$stamp" 2>/dev/null || :)" = "$release" ] || changed=yes
if [ "$(readlink "$home/current" || :)" != "$release" ] || [ ! -e "$release/installed" ]; then
    changed=yes
    rm -rf "$release" "$stamp"
    mkdir -p "$home/releases"
    trap 'rm -rf "$release"' EXIT
    trap 'exit 1' HUP INT TERM
    umask 022
    if ! "$deploy/make-venv.sh" "$release" 2>/dev/null; then
        say "installing a Python of 3.11 or newer"
        if command -v apt-get >/dev/null; then
            apt-get -qq update </dev/null || :
            DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv </dev/null || :
        elif command -v dnf >/dev/null; then
            dnf -q install -y python3.11 </dev/null || :
        fi
        "$deploy/make-venv.sh" "$release"
    fi
    say "installing the program into $release"
    # A copy, because a build leaves files in its tree.
    source=$(mktemp -d)
    trap 'rm -rf "$release" "$source"' EXIT
    (cd "$tree" && cp -R pyproject.toml README.md LICENSE scistream s2cs s2uc templates "$source")
    "$release/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
        --constraint "$tree/constraints.txt" "$source[etcd]"
    rm -rf "$source"
    touch "$release/installed"
    trap - EXIT HUP INT TERM
    ln -sfn "$release" "$home/current"
    ln -sfn current/bin "$home/bin"
fi

# put SOURCE TARGET: copy what is not there, or another one.
put() {
    if ! cmp -s "$1" "$2"; then
        rm -f "$stamp"
        install -D -m 0644 "$1" "$2"
        changed=yes
    fi
}
for unit in scistream.service scistream-s2ds.service; do put "$deploy/systemd/$unit" "$units/$unit"; done
put "$deploy/systemd/scistream.sysusers" /usr/local/lib/sysusers.d/scistream.conf
for name in s2cs s2uc; do
    if [ ! -e "/usr/local/bin/$name" ]; then ln -s "$home/bin/$name" "/usr/local/bin/$name"; fi
done
if [ "$changed" = yes ]; then systemctl daemon-reload; fi

SCISTREAM_CHANGED=$changed SCISTREAM_NODE=$node sh "$deploy/systemd/configure.sh" "$@"

# The release before is kept for those who want it back; older ones go.
if [ "$changed" = yes ]; then
    echo "$release" >"$stamp"
    find "$home/releases" -mindepth 1 -maxdepth 1 ! -path "$release" -printf '%T@ %p\n' | sort -rn | tail -n +2 |
        cut -d ' ' -f 2- | xargs -r rm -rf
    if [ -e "$etc/s2cs.toml" ]; then
        say "installed; settings are in $etc/s2cs.toml, the first user's token in $etc/token"
    else
        say "installed; settings are in $etc/s2ds.toml"
    fi
else
    say "all is up to date"
fi
