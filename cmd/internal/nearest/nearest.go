// Package nearest finds the word that someone probably meant.
package nearest

import "strings"

// Word returns the one of among that is nearest to word: the only one that
// begins with it, else the one that the fewest edits (insertion, deletion,
// substitution, two neighbours swapped) turn it into, if these are few for a
// word of its length. ok is false when none is near. Letter case and the
// difference between "-" and "_" cost nothing.
func Word(word string, among []string) (near string, ok bool) {
	w := fold(word)
	if w == "" {
		return "", false
	}
	begins := 0
	for _, c := range among {
		if len(w) > 1 && strings.HasPrefix(fold(c), w) {
			near = c
			begins++
		}
	}
	if begins == 1 {
		return near, true
	}
	best := len(w)/3 + 1
	near = ""
	for _, c := range among {
		if d := distance(w, fold(c)); d <= best && d < len(w) && (near == "" || d < best) {
			near, best = c, d
		}
	}
	return near, near != ""
}

func fold(s string) string { return strings.ReplaceAll(strings.ToLower(s), "_", "-") }

// distance is the optimal string alignment distance, in bytes.
func distance(a, b string) int {
	before := make([]int, len(b)+1) // the row two above
	above := make([]int, len(b)+1)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, above, row = above, row, before
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
