# Tab completion of `python -m pipeline.run` in bash, for this shell:
#   source completion.bash
# Hydra can say what may follow, but the function that it installs itself knows scripts only, not modules.
_pipeline_run() {
    [[ $COMP_LINE == *" -m pipeline.run "* ]] || return
    local choices
    choices=$(COMP_LINE="run ${COMP_LINE#* -m pipeline.run }" "${COMP_WORDS[0]}" -m pipeline.run -sc query=bash 2> /dev/null)
    mapfile -t COMPREPLY < <(compgen -W "$choices" -- "${COMP_WORDS[COMP_CWORD]}")
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=} # or a word would end at the = of name=value
complete -o nospace -o default -F _pipeline_run python python3
