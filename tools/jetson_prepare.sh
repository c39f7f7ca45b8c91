#!/usr/bin/env bash
# Before measuring on a Jetson: show its power mode and clocks, and on request set them. Never sets anything by itself.
#   jetson_prepare.sh                show
#   jetson_prepare.sh --mode ID      set the power mode of that number (nvpmodel -m ID), then show; some modes want a reboot
#   jetson_prepare.sh --lock         lock the clocks at the mode's highest (jetson_clocks), then show
#   jetson_prepare.sh --unlock       let them vary again (jetson_clocks --restore), then show
# Numbers of modes are not portable: MAXN_SUPER is 2 on an Orin Nano and 0 on an Orin NX. What is set stays until the
# next boot (clocks) or for good (mode).
set -euo pipefail
# Of root's own: jetson_clocks writes, as root, what a stored file says. /run is empty after a boot, as the clocks are.
STORE=/run/edgesdk/jetson-clocks
ROOT=${EDGESDK_ROOT:-}  # of the file system, for tests

say() { printf '%s\n' "$*"; }
die() { printf 'jetson_prepare: %s\n' "$1" >&2; exit "${2:-1}"; }  # a message, and an exit status
as_root() {
  say "+ sudo $*"
  sudo "$@"
}
need() { command -v "$1" >/dev/null || die "$1 is not on this machine; it comes with NVIDIA's L4T for Jetson"; }

show() {
  say "module     $(tr -d '\0' 2>/dev/null <"$ROOT/proc/device-tree/model" || say unknown)"
  say "L4T        $(head -n 1 "$ROOT/etc/nv_tegra_release" 2>/dev/null || say unknown)"
  if command -v nvpmodel >/dev/null; then
    say "power mode $(nvpmodel -q 2>/dev/null | tr '\n' ' ')"
    say "modes      $(grep -oE '< *POWER_MODEL +ID=[0-9]+ +NAME=[^ >]+' "$ROOT/etc/nvpmodel.conf" 2>/dev/null |
      sed -E 's/.*ID=([0-9]+) +NAME=(.*)/\1 \2/' | paste -sd, - || true)"
  fi
  for folder in "$ROOT"/sys/class/devfreq/*; do
    case ${folder##*/} in
    *gpu* | *ga10b* | *gv11b* | *gp10b*)
      [ -r "$folder/cur_freq" ] && [ -r "$folder/min_freq" ] && [ -r "$folder/max_freq" ] || continue
      say "GPU clock  $(($(cat "$folder/cur_freq") / 1000000)) MHz, $(($(cat "$folder/min_freq") / 1000000)) to" \
        "$(($(cat "$folder/max_freq") / 1000000)) allowed"
      ;;
    esac
  done
  for mask in "$ROOT"/sys/devices/gpu.0/tpc_pg_mask "$ROOT"/sys/devices/platform/gpu.0/tpc_pg_mask; do
    [ -r "$mask" ] && say "TPCs off   mask $(cat "$mask")"
  done
  say "memory     $(awk '/MemAvailable/ {printf "%d MiB free", $2 / 1024}' /proc/meminfo)"
}

[ $# -le 2 ] || die "see the top of this file" 2
case ${1:-} in
"") ;;
--mode)
  [[ ${2:-} =~ ^[0-9]+$ ]] || die "--mode needs a number" 2
  need nvpmodel
  as_root nvpmodel -m "$2"
  # Over a connection without a terminal a mode that wants a reboot is left out without a word.
  now=$(nvpmodel -q | tail -n 1) || die "nvpmodel -q fails: which power mode it is now is not known"
  [ "$now" = "$2" ] || die "the power mode is $now, not $2: reboot, and look again"
  as_root rm -f "$STORE"  # the limits of the mode before
  ;;
--lock)
  need jetson_clocks
  as_root install -d -o root -g root -m 0700 "${STORE%/*}"
  sudo test -e "$STORE" || as_root jetson_clocks --store "$STORE"
  as_root jetson_clocks
  ;;
--unlock)
  need jetson_clocks
  sudo test -e "$STORE" || die "nothing was stored in $STORE; reboot to let the clocks vary again"
  as_root jetson_clocks --restore "$STORE"
  as_root rm "$STORE"
  ;;
-h | --help) sed -n '2,8p' "$0" | cut -c3- ; exit 0 ;;
*) die "unknown option $1; see the top of this file" 2 ;;
esac
[ -e "$ROOT/etc/nv_tegra_release" ] || die "this is no Jetson: no /etc/nv_tegra_release"
show
