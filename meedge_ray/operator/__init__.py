"""The operator: an API server that speaks Kubernetes, and controllers that keep true what is declared."""
