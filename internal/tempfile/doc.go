// Package tempfile makes temporary files that never have a name: their space
// comes back whatever happens to the process, and nobody who looks into the
// directory sees them.
package tempfile
