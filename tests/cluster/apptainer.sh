#!/usr/bin/env bash
# Installs the real Apptainer on Debian 12, as root: Debian's own package, of a later release than 12, on a libc of its
# own. Does nothing where Apptainer is there.
set -euo pipefail
if apptainer --version 2>/dev/null; then exit 0; fi

export DEBIAN_FRONTEND=noninteractive
libraries=/opt/apptainer-libraries
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mirror=$(grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/ 2>/dev/null |
  grep -vE 'security|snapshot' | head -1 | tr -d ' ' || true)
apt-get update -qq
apt-get install -y -qq --no-install-recommends patchelf squashfs-tools squashfuse fuse3 fuse-overlayfs uidmap >/dev/null

mkdir -p "$work"/{lists/partial,cache/archives/partial,debs,files} && : > "$work/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" > "$work/sources.list"
cat > "$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/nonexistent";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
Dir::State::status "$work/status";
APT::Sandbox::User "root";
CONF
export APT_CONFIG="$work/apt.conf"
apt-get update -qq
(cd "$work/debs" && apt-get download -qq apptainer libc6 libseccomp2 libsqlite3-0)
unset APT_CONFIG
for deb in "$work"/debs/*.deb; do
  name=$(basename "$deb")
  dpkg-deb -x "$deb" "$work/files/${name%%_*}"
done

mkdir -p "$libraries"
cp -a "$work"/files/lib*/usr/lib/x86_64-linux-gnu/*.so* "$libraries"/
cd "$work/files/apptainer"
for program in usr/bin/apptainer usr/lib/x86_64-linux-gnu/apptainer/bin/starter; do
  patchelf --set-interpreter "$libraries/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$libraries" "$program"
done
mkdir -p /etc/apptainer /usr/lib/x86_64-linux-gnu/apptainer
mkdir -p /var/lib/apptainer/mnt/{session,source,container,final,overlay,underlay}
cp -a etc/apptainer/. /etc/apptainer/
cp -a usr/lib/x86_64-linux-gnu/apptainer/. /usr/lib/x86_64-linux-gnu/apptainer/
install -m755 usr/bin/apptainer /usr/bin/apptainer
# root in a virtual machine may lack CAP_SYS_RESOURCE, which apptainer's default would ask for
sed -i 's/^root default capabilities = .*/root default capabilities = no/' /etc/apptainer/apptainer.conf
chmod 666 /dev/fuse # ordinary users mount an image through it
apptainer --version
