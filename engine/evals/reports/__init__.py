"""What a run or a comparison leaves behind for people and for CI."""
