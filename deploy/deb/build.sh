#!/bin/sh
# Build a Debian package of this tree: the program with all it depends on in /opt/scistream, the unit, the users.
#   build.sh [DIR]      puts scistream_VERSION_ARCH.deb into DIR [dist]
# Packages of Python come as binary wheels for the Python of the release, SCISTREAM_DEB_PYTHON [3.11, of Debian 12], so
# any machine with pip can build it. PIP_FIND_LINKS and PIP_NO_INDEX of pip hold.
set -eu

deploy=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tree=$(dirname -- "$deploy")
out=${1:-$tree/dist}
python=${SCISTREAM_DEB_PYTHON:-3.11}
next=${python%.*}.$((${python#*.} + 1))
pip=${PIP:-$tree/.venv/bin/python -m pip}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$tree/scistream/__init__.py")
# A build number makes each build an upgrade of the one before: the time of the last change to the tree's files.
build=${SCISTREAM_DEB_BUILD:-$(cd "$tree" && find scistream s2cs s2uc templates deploy -type f -printf '%Ts\n' | sort -n | tail -n 1)}
arch=$(dpkg --print-architecture)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
umask 022
root=$work/root home=$work/root/opt/scistream
site=$home/lib/python$python/site-packages
mkdir -p "$site" "$home/bin" "$root/DEBIAN" "$work/tree"

# A copy, because a build leaves files in its tree.
(cd "$tree" && cp -R pyproject.toml README.md LICENSE scistream s2cs s2uc templates "$work/tree")
# shellcheck disable=SC2086  # a command and its words
$pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work/wheel" "$work/tree"
# shellcheck disable=SC2086
$pip install --quiet --disable-pip-version-check --no-compile --target "$site" --only-binary :all: \
    --implementation cp --python-version "$python" --constraint "$tree/constraints.txt" "$(echo "$work"/wheel/scistream-*.whl)[etcd]"
rm -rf "$site/bin"

# A virtual environment by hand: it needs no more than this, and nothing of it names the machine that built it.
ln -s /usr/bin/python3 "$home/bin/python"
printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$python" >"$home/pyvenv.cfg"
for name in s2cs s2uc; do
    printf '#!/opt/scistream/bin/python\nimport sys\n\nfrom %s.cli import main\n\nsys.exit(main())\n' "$name" \
        >"$home/bin/$name"
    chmod 755 "$home/bin/$name"
done
mkdir -p "$root/usr/bin" "$home/deploy"
ln -s /opt/scistream/bin/s2cs /opt/scistream/bin/s2uc "$root/usr/bin/"
install -m 0755 "$deploy/systemd/configure.sh" "$deploy/systemd/remove.sh" "$home/deploy/"
install -m 0644 "$deploy/systemd/privileged.conf" "$home/deploy/"
for unit in scistream.service scistream-s2ds.service; do
    install -D -m 0644 "$deploy/systemd/$unit" "$root/lib/systemd/system/$unit"
done
install -D -m 0644 "$deploy/systemd/scistream.sysusers" "$root/usr/lib/sysusers.d/scistream.conf"
install -D -m 0644 "$tree/LICENSE" "$root/usr/share/doc/scistream/copyright"

for script in postinst prerm postrm; do install -m 0755 "$deploy/deb/$script" "$root/DEBIAN/$script"; done
cat >"$root/DEBIAN/control" <<EOF
Package: scistream
Version: $version-$build
Architecture: $arch
Maintainer: The SciStream authors <scistream@localhost>
Installed-Size: $(du -sk --exclude DEBIAN "$root" | cut -f 1)
Depends: python3 (>= $python), python3 (<< $next), systemd, util-linux
Recommends: nginx, libnginx-mod-stream | haproxy | stunnel4
Section: net
Priority: optional
Description: memory-to-memory streaming between scientific facilities
 The gateway s2cs, as a service of systemd, and the user client s2uc. Data goes through Nginx, HAProxy or Stunnel.
EOF

mkdir -p "$out"
package=$out/scistream_$version-${build}_$arch.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null
echo "$package"
