#!/usr/bin/env bash
# image.sh IMAGE.sif: NeMo on a CPU as an Apptainer image, from Debian 12's Python and the workflow's pinned packages. As
# root. The same environment is left in $LAB/env for the host; what is there from a former call is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
lab=${LAB:-/opt/cluster-lab}
pins=$(cat envs/requirements.txt envs/nemo.txt tests/cluster/image.sh | sha256sum | cut -c1-16)
if [ ! -e "$lab/$pins.sif" ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv mmdebstrap >/dev/null
  mkdir -p "$lab" && rm -rf "$lab"/env "$lab"/*.sif "$lab"/root.*
  {
    /usr/bin/python3 -m venv "$lab/env"
    "$lab/env/bin/pip" install -qq --no-compile --requirement envs/requirements.txt
    "$lab/env/bin/pip" install -qq --no-compile --no-deps --requirement envs/nemo.txt
    "$lab/env/bin/python" -m compileall -qq -j 0 "$lab/env/lib" || true # pip takes one core; some are templates
  } & # meanwhile mmdebstrap fetches Debian

  mirror=$(grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/ 2>/dev/null |
    grep -vE 'security|snapshot' | head -1 | tr -d ' ' || true)
  root=$(mktemp -d "$lab/root.XXXXXX") # beside env, whose files it links
  trap 'rm -rf "$root"' EXIT
  chmod 755 "$root"
  mmdebstrap --quiet --variant=minbase --include=python3,procps bookworm "$root/root" "$mirror"
  wait $! # for pip
  mkdir -p "$root/root$lab"
  cp -al "$lab/env" "$root/root$lab/env"
  ln -s "$lab/env/bin/torchrun" "$root/root/usr/local/bin/torchrun"
  apptainer --quiet build --mksquashfs-args "-comp zstd -Xcompression-level 1" "$root/image.sif" "$root/root"
  mv "$root/image.sif" "$lab/$pins.sif"
fi
cp "$lab/$pins.sif" "$1"
chmod 644 "$1"
