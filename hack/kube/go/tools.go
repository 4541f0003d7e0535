//go:build tools

// Names helm, which is built from its own main package, so that go.mod keeps its version and what it needs.
package main

import _ "helm.sh/helm/v3/cmd/helm"
