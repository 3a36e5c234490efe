#compdef understudy
# Completion of understudy in zsh: the command says itself what may follow. The
# variable 0 has it add descriptions.
local -a asked answers
asked=("${(@)words[1,CURRENT-1]}")
[[ $words[CURRENT] != -* ]] || asked+=("$words[CURRENT]")
answers=("${(@f)$(env 0=zsh "${asked[@]}" --generate-bash-completion 2>/dev/null)}")
if [[ -n $answers[1] ]]; then
	_describe understudy answers
else
	_files
fi
