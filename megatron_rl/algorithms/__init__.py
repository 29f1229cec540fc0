"""What the policy is trained towards: advantages and losses, as pure functions."""
