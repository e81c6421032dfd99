"""An earlier study beside its repetition."""
