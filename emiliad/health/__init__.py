"""What people and machines may ask a running daemon: is it alive, is it ready, what does it do."""
