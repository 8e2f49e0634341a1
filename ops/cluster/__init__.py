"""A toy cluster on a simulated clock: enough of Kubernetes to judge autokickers by."""
