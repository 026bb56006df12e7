# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of vmdedup for bash. Verbs and options come from the command's own help, images from
# the cluster.

_vmdedup_options() {
	"$@" --help 2>/dev/null | sed -n 's/^  \(--[a-z-]*\).*/\1/p'
}

_vmdedup() {
	local cur=${COMP_WORDS[COMP_CWORD]} cmd=${COMP_WORDS[0]} noun=${COMP_WORDS[1]-}
	local verb=${COMP_WORDS[2]-} words=''
	COMPREPLY=()
	if ((COMP_CWORD == 1)); then
		words="cluster image cache volume peers status --conf --version --help"
	elif [[ $noun = status || $noun = peers ]]; then
		words=$(_vmdedup_options "$cmd" "$noun")
	elif ((COMP_CWORD == 2)); then
		words="$("$cmd" "$noun" --help 2>/dev/null | sed -n 's/^  \([a-z-]*\) .*/\1/p') --help"
	elif [[ $cur = -* ]]; then
		words=$(_vmdedup_options "$cmd" "$noun" "$verb")
	else
		case "$noun $verb $COMP_CWORD" in
		"image import 3"|"image export 4"|"cluster backup "*|"cluster restore "*|cache\ *)
			mapfile -t COMPREPLY < <(compgen -f -- "$cur")
			return ;;
		"volume detach "*|"volume push "*|"volume handover "*|"volume resize "*|"volume recover "*)
			words=$("$cmd" volume ls 2>/dev/null | awk 'NR > 1 { print $1, $2 }') ;;
		"cluster add 3"|"cluster drain 3"|"cluster remove 3")
			words=$("$cmd" cluster servers 2>/dev/null | awk 'NR > 1 { print $1 }') ;;
		image\ *|volume\ attach\ *)
			words=$("$cmd" image ls 2>/dev/null | awk 'NR > 1 { print $1 }') ;;
		esac
	fi
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}

complete -o filenames -F _vmdedup vmdedup
