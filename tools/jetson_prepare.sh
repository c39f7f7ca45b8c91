#!/usr/bin/env bash
# Before measuring on a Jetson: show its power mode and clocks, and on request set them. Never sets anything by itself.
#   jetson_prepare.sh                show; the memory's clock is told to root alone
#   jetson_prepare.sh --mode ID      set the power mode of that number (nvpmodel -m ID), then show; some modes want a reboot
#   jetson_prepare.sh --lock         lock the clocks at the mode's highest (jetson_clocks), then show
#   jetson_prepare.sh --unlock       let them vary again (jetson_clocks --restore), then show
# Numbers of modes are not portable: MAXN_SUPER is 2 on an Orin Nano and 0 on an Orin NX. What is set stays until the
# next boot (clocks) or for good (mode).
set -euo pipefail
ROOT=${EDGESDK_ROOT:-}  # of the file system, for tests
# Of root's own: jetson_clocks writes, as root, what a stored file says. /run is empty after a boot, as the clocks are.
STORE=$ROOT/run/edgesdk/jetson-clocks

say() { printf '%s\n' "$*"; }
die() { printf 'jetson_prepare: %s\n' "$1" >&2; exit "${2:-1}"; }  # a message, and an exit status
as_root() {
  say "+ sudo $*"
  sudo "$@"
}
on_jetson() { [ -e "$ROOT/etc/nv_tegra_release" ] || die "this is no Jetson: no /etc/nv_tegra_release"; }
need() {  # before anything is set
  on_jetson
  command -v "$1" >/dev/null || die "$1 is not on this machine; it comes with NVIDIA's L4T for Jetson"
}
clock() {  # a name, MHz now, lowest and highest, and more to say
  say "$1  $2 MHz, $3 to $4 allowed${5:-}"
}
clock_in() {  # a name, what its files' names begin with, how many of their units are a MHz, and more to say
  [ -r "${2}cur_freq" ] && [ -r "${2}min_freq" ] && [ -r "${2}max_freq" ] || return 0
  clock "$1" $(($(cat "${2}cur_freq") / $3)) $(($(cat "${2}min_freq") / $3)) $(($(cat "${2}max_freq") / $3)) "${4:-}"
}

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
      clock_in "GPU clock" "$folder/" 1000000
      ;;
    esac
  done
  for folder in "$ROOT"/sys/devices/system/cpu/cpufreq/policy*; do
    clock_in "CPU clock" "$folder/scaling_" 1000 ", CPUs $(cat "$folder/affected_cpus" 2>/dev/null || say unknown)"
  done
  emc=$(jetson_clocks --show 2>/dev/null | grep '^EMC ' || true)
  if [[ $emc =~ MinFreq=([0-9]+)\ +MaxFreq=([0-9]+)\ +CurrentFreq=([0-9]+) ]]; then
    clock "EMC clock" $((BASH_REMATCH[3] / 1000000)) $((BASH_REMATCH[1] / 1000000)) $((BASH_REMATCH[2] / 1000000))
  else
    say "EMC clock  unknown: jetson_clocks tells the memory's to root alone"
  fi
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
on_jetson
show
