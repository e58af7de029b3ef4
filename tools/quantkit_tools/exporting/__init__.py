"""What `quantkit export` is made of beside its answers: the new name and record, the making and the proof."""
