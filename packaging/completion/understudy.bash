# Completion of understudy in bash: the command says itself what may follow.
_understudy() {
	local words=("${COMP_WORDS[@]:0:COMP_CWORD}") current=${COMP_WORDS[COMP_CWORD]}
	[[ $current != -* ]] || words+=("$current")
	mapfile -t COMPREPLY < <(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$current")
}
complete -o default -F _understudy understudy
