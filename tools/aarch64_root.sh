#!/usr/bin/env bash
# Run a Python program on an emulated aarch64 CPU (a Jetson's architecture), on an x86-64 Debian 12 machine.
# tools/check_device_install.py uses it; times measured under emulation say nothing of a Jetson.
#   aarch64_root.sh setup ROOT WHEELS REQ...    as root; once; about 15 s, 223 MB: Debian 12 arm64 files (no maintainer
#                                              script runs, so nothing is emulated) + aarch64 wheels unpacked by this pip
#   aarch64_root.sh run ROOT FILE.py ARG...     host filesystem, current folder; needs no root, no chroot, no binfmt_misc
#   aarch64_root.sh chroot ROOT FOLDER CMD...   FOLDER is /mnt; as root, needs binfmt_misc; child processes run emulated too
# WHEELS is emptied by setup. Do not mount /sys inside: onnxruntime 1.31's cpuinfo then dies (SIGSEGV) on the host's data.
set -euo pipefail
verb=$1; R=$(realpath -m "$2"); shift 2
PYV=3.11                      # Debian 12's python3
SITE=/opt/site
PLAT=(--python-version "$PYV" --only-binary=:all:
      --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64
      --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64)
DEBS=python$PYV-minimal,libpython$PYV-stdlib,python3-minimal,libstdc++6,libgcc-s1,zlib1g,libssl3,libffi8,libbz2-1.0
DEBS+=,liblzma5,libsqlite3-0,libexpat1,libuuid1,libreadline8,libtinfo6,libncursesw6,libcrypt1,libdb5.3,libtirpc3
DEBS+=,libnsl2,libgssapi-krb5-2,libkrb5-3,libk5crypto3,libkrb5support0,libcom-err2,libkeyutils1,coreutils,dash
DEBS+=,libacl1,libattr1,libselinux1,libpcre2-8-0,libgmp10,base-files,media-types,netbase
case $verb in
setup)
  WH=$1; shift
  export DEBIAN_FRONTEND=noninteractive
  if ! command -v mmdebstrap >/dev/null || ! command -v qemu-aarch64-static >/dev/null; then
    # mounted before the packages are configured, their handlers register by themselves (only `chroot` needs them)
    mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || true
    apt-get -q -o DPkg::Lock::Timeout=300 update
    apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends \
      qemu-user-static binfmt-support mmdebstrap arch-test
  fi
  [ -x "$R/usr/bin/python$PYV" ] || mmdebstrap --quiet --mode=root --architectures=arm64 --variant=extract --include="$DEBS" \
      --skip=check/qemu --aptopt='Acquire::Languages "none"' \
      --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
      bookworm "$R"
  mkdir -p "$WH"; rm -f "$WH"/*.whl
  python3 -m pip download -q -d "$WH" "${PLAT[@]}" "$@"
  rm -rf "$R$SITE"
  python3 -m pip install -q --no-index --no-deps --no-compile --root-user-action=ignore --target "$R$SITE" "${PLAT[@]}" "$WH"/*.whl
  # inside qemu's -L prefix an empty file hides the host's: cpuinfo then gives up instead of crashing
  mkdir -p "$R/sys/devices/system/cpu"; : >"$R/sys/devices/system/cpu/possible"; : >"$R/sys/devices/system/cpu/present"
  "$0" run "$R" -c 'import platform,sys; assert platform.machine()=="aarch64"; print(platform.machine(), sys.version)'
  ;;
run)
  exec env PYTHONHOME="$R/usr" PYTHONPATH="$R$SITE${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 \
    qemu-aarch64-static -L "$R" "$R/usr/bin/python$PYV" "$@"
  ;;
chroot)
  F=$(realpath "$1"); shift
  mkdir -p "$R/mnt"
  exec unshare --mount --propagation private sh -c '   # private mounts: nothing to undo, even if killed
    R=$1; F=$2; S=$3; shift 3
    mount --bind /proc "$R/proc"; mount --bind /dev "$R/dev"; mount --bind "$F" "$R/mnt"
    exec chroot "$R" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 PYTHONPATH="$S" \
      sh -c "cd /mnt && exec \"\$@\"" sh "$@"' sh "$R" "$F" "$SITE" "$@"
  ;;
*) echo "setup, run or chroot" >&2; exit 2 ;;
esac
