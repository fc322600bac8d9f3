# SPDX-License-Identifier: MIT
# Completion of the vmm command for bash; "make install" puts it in its place.
#
# It wants nothing of the bash-completion package but to be loaded by it.

# Offer the words of $1, or with $1 = -f files, that begin with $2.
_vmm_offer()
{
	if [ "$1" = -f ]; then
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$2")
	else
		mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
	fi
	# An option that wants a value goes on with it: no blank.
	case ${COMPREPLY[0]-} in
	*=) compopt -o nospace ;;
	esac
}

# The value of option $1, of which $2 has been typed.
_vmm_value()
{
	case $1 in
	-k | --kernel | -i | --initrd | --disk | --share | --dump-dtb | --snapshot-on-ready | \
	--control | --parent) _vmm_offer -f "$2" ;;
	-m | --memory) _vmm_offer '128M 256M 512M 1G 2G 4G' "$2" ;;
	-c | --cpus) _vmm_offer '1 2 4 8 16 32 64' "$2" ;;
	-a | --append) _vmm_offer 'console=ttyS0 console=hvc0' "$2" ;;
	--net) _vmm_offer 'user tap= fd=' "$2" ;;
	--vsock) _vmm_offer '3 3,uds=' "$2" ;;
	--irqchip) _vmm_offer 'emul hwaccel auto' "$2" ;;
	--isa | --name | --count) ;;
	*) return 1 ;;
	esac
}

_vmm()
{
	local both='--disk= --net= --vsock= --console --irqchip= --snapshot-on-ready= --control=
		--name= --no-reboot --timing --json --verbose --help --usage'
	local run="--kernel= --initrd= --append= --memory= --cpus= --isa= --share= --rng
		--balloon --dump-dtb= $both"
	local cur=${COMP_WORDS[COMP_CWORD]} i=$COMP_CWORD option

	COMPREPLY=()
	if [ "$COMP_CWORD" = 1 ]; then
		_vmm_offer 'run restore snap fork control info learn merge verify probe help --help --version' "$cur"
		return
	fi
	# Where = breaks words, as usual, "--irqchip=em" comes as three of them and
	# "--disk=disk0=im" as five.
	[ "$cur" != = ] || { cur= i=$((i + 1)); }
	while [ "${COMP_WORDS[i - 1]}" = = ]; do i=$((i - 2)); done
	option=${COMP_WORDS[i]-}
	case $i:$option in
	"$COMP_CWORD":* | *:[!-]*) option=${COMP_WORDS[i - 1]} ;;
	esac
	case ${COMP_WORDS[1]}:$cur in
	run:*) _vmm_value "$option" "$cur" || _vmm_offer "$run" "$cur" ;;
	restore:-*) _vmm_offer "--resume --count= $both" "$cur" ;;
	restore:*) _vmm_value "$option" "$cur" || _vmm_offer -f "$cur" ;;
	snap:-*) _vmm_offer '--parent= --help --usage' "$cur" ;;
	learn:-*) _vmm_offer '--rings= --timeout= --help --usage' "$cur" ;;
	fork:-*) _vmm_offer '--count= --timing --json --help --usage' "$cur" ;;
	info:-*) _vmm_offer '--json --help --usage' "$cur" ;;
	control:*)
		if [ "$COMP_CWORD" = 3 ]; then
			_vmm_offer 'pause resume stop stat' "$cur"
		else
			_vmm_offer -f "$cur"
		fi
		;;
	snap:* | fork:* | info:* | learn:* | merge:* | verify:*) _vmm_offer -f "$cur" ;;
	probe:*) _vmm_offer '--json --help --usage' "$cur" ;;
	esac
}

complete -F _vmm vmm
