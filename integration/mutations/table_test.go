package mutations

// mutation is one way to break a promise of the program. Its package's tests
// must notice.
type mutation struct {
	promise string // "invariant N", or a row or rule of the design's section on fetch or on restore
	breaks  string // what the change would do
	file    string // from the module's root
	old     string // occurs exactly once in file
	new     string
	pkg     string // whose tests must fail, from the module's root
	run     string // those that are expected to, for go test -run
}

// promises must each have a row in the table: the invariants that hold so far,
// the outcomes of fetch, and the rules of restore.
func promises() []string {
	return []string{
		"invariant 1", "invariant 2", "invariant 3", "invariant 4", "invariant 5", "invariant 6", "invariant 7", "invariant 9", "invariant 10",
		"fetch: delivered", "fetch: proved absent", "fetch: failed", "fetch: wrong flag or setting", "fetch: a bug", "fetch: SIGTERM",
		"fetch: mode and place", "fetch: never past a fork", "fetch: checks",
		"restore: nothing is missing", "restore: what is unfinished does not start", "restore: what cannot be reached is refused",
	}
}

func table() []mutation {
	return []mutation{
		// A pg_receivewal's directory.
		{
			promise: "invariant 1", breaks: "what a compressed file was flushed with is not on the disk",
			file: "segment/disk/waldir/stream.go",
			old:  "\t\terr = s.f.Sync()\n", new: "\t\terr = nil\n",
			pkg: "segment/disk/waldir", run: "TestPowerGoesAtEveryOperation",
		},
		{
			promise: "invariant 1", breaks: "a partial that is taken over gives its place to one that is not on the disk yet",
			file: "segment/disk/waldir/stream.go",
			old:  "\t\terr = s.save(false)\n", new: "\t\terr = nil\n",
			pkg: "segment/disk/waldir", run: "TestPowerGoesWhileAPartialIsTakenOver",
		},
		{
			promise: "invariant 3", breaks: "a segment that waited for its seal is passed over after a crash",
			file: "segment/disk/waldir/scan.go",
			old:  "\tw.goBack(l)\n", new: "",
			pkg: "segment/disk/waldir", run: "TestPowerGoesWhileASegmentWaitsForItsSeal",
		},
		{
			promise: "invariant 3", breaks: "the directory loses what the archive has",
			file: "segment/disk/waldir/waldir.go",
			old:  "\t\treturn d.drop(n, path)\n", new: "\t\treturn d.fs.Remove(path)\n",
			pkg: "segment/disk/waldir", run: "TestSpool",
		},
		{
			promise: "invariant 5", breaks: "an old primary's WAL goes into the directory of its successor's",
			file: "receiver/resume.go",
			old:  "if owned && own.Timeline > s.system.Timeline {", new: "if false {",
			pkg: "receiver", run: "TestADirectoryOfAYoungerTimeline",
		},

		// What is reported survives.
		{
			promise: "invariant 1", breaks: "received counts as spooled",
			file: "receiver/feedback.go",
			old:  "return max(st.r.spooled, shipped)", new: "return max(st.r.pos.LSN, shipped)",
			pkg: "receiver", run: "TestFlushWaitsForTheDisk",
		},
		{
			promise: "invariant 1", breaks: "a commit is released without the fsync that it waits for",
			file: "receiver/direct.go",
			old:  "res := syncRequest{seg: g}.do()", new: "res := syncResult{seg: g, durable: g.Written()}",
			pkg: "receiver", run: "TestFlushWaitsForTheDisk|TestCommitsAreAnsweredOneByOne",
		},
		{
			promise: "invariant 1", breaks: "what came while an fsync was under way counts as durable",
			file: "receiver/stream.go",
			old:  "r.spooled = max(r.spooled, min(res.durable, r.pos.LSN))", new: "r.spooled = max(r.spooled, r.pos.LSN)",
			pkg: "receiver", run: "TestFlushIsWhatTheSyncBeganWith",
		},
		{
			promise: "invariant 1", breaks: "what the failed fsync of a segment may have lost is kept for received",
			file: "receiver/stream.go",
			old:  "r.pos.LSN = min(r.pos.LSN, r.spooled)", new: "_ = r.spooled",
			pkg: "receiver", run: "TestAFailedSeal",
		},
		{
			promise: "invariant 1", breaks: "no hold: the loss of the host leaves a gap",
			file: "receiver/feedback.go",
			old:  "st.r.o.Ack == AckArchive || st.holding() {", new: "st.r.o.Ack == AckArchive {",
			pkg: "receiver", run: "Hold",
		},
		{
			promise: "invariant 1", breaks: "the archive is acknowledged before it has the WAL",
			file: "receiver/feedback.go",
			old:  "st.r.o.Ack == AckArchive || st.holding() {", new: "st.holding() {",
			pkg: "receiver", run: "TestAckArchive",
		},
		{
			promise: "invariant 1", breaks: "what was received counts as written to the disk",
			file: "receiver/feedback.go",
			old:  "return max(r.spooled, shipped)", new: "return max(r.pos.LSN, shipped)",
			pkg: "receiver", run: "TestWriteWaitsForTheDisk",
		},
		{
			promise: "invariant 1", breaks: "tail objects hold what a crash of the host takes from the spool",
			file: "receiver/feedback.go",
			old:  "r.uploader.Offer(r.seg, min(r.spooled, st.cursor), false)", new: "r.uploader.Offer(r.seg, st.cursor, false)",
			pkg: "receiver", run: "TestTailsOfTheSpoolAreDurable",
		},
		{
			promise: "invariant 1", breaks: "tail objects of the old timeline count behind the switchpoint",
			file: "uploader/tails.go",
			old:  "p = segment.Position{Timeline: s.child, LSN: s.at}", new: "p = segment.Position{Timeline: s.child, LSN: p.LSN}",
			pkg: "uploader", run: "TestShippedAcrossASwitch",
		},
		{
			promise: "invariant 1", breaks: "a tail object counts as shipped whatever the store said",
			file: "uploader/tails.go",
			old:  "func() error { return put(ctx, t, method, frame) }); err != nil {", new: "func() error { _ = put(ctx, t, method, frame); return nil }); err != nil {",
			pkg: "uploader", run: "TestTailsOnAFailingStore",
		},
		{
			promise: "invariant 3", breaks: "what the archive's tail objects have is not compared with the server",
			file: "receiver/resume.go",
			old:  "g.Settle(end)", new: "g.Abandon()",
			pkg: "receiver", run: "TestOtherTailsAreAConflict|TestTailsUpToTheSegmentsEnd",
		},
		{
			promise: "invariant 3", breaks: "a new archive that has only tail objects is taken for an empty one",
			file: "receiver/resume.go",
			old:  "if asked && !ok && !held {", new: "if false {",
			pkg: "receiver", run: "TestNewArchiveWithTailsOnly",
		},
		{
			promise: "invariant 1", breaks: "what the disk alone holds of a new timeline stays there, because a record that the parent's last segment begins is not found",
			file: "uploader/tails.go",
			old:  "u.spool.Before(g.Name(), u.sizeOf())", new: "u.sizeOf().Name(g.Name().Timeline, g.Start()-1)",
			pkg: "uploader", run: "TestARecordThatGoesOnFromTheArchive",
		},
		{
			promise: "invariant 3", breaks: "a tail object goes up before the older segment, which nothing else holds",
			file: "uploader/tails.go",
			old:  "if u.waitsForOlder(c) {", new: "if false {",
			pkg: "uploader", run: "TestATailWaitsForTheOldest",
		},
		{
			promise: "invariant 10", breaks: "a lifecycle rule removes what nothing else holds",
			file: "uploader/tails.go",
			old:  "return c, true, 0", new: "continue",
			pkg: "uploader", run: "TestTheChainOfAnOpenSegmentIsRenewed",
		},
		{
			promise: "invariant 10", breaks: "a tail object is removed while a reader may have its name",
			file: "uploader/tails.go",
			old:  "supersededFor = 10 * time.Minute", new: "supersededFor = 10 * time.Millisecond",
			pkg: "uploader", run: "TestTailsAreMergedAndRemoved",
		},
		{
			promise: "invariant 1", breaks: "the shipped position is taken beyond a switchpoint",
			file: "receiver/feedback.go",
			old:  "return min(p.LSN, at, r.pos.LSN), true", new: "return max(p.LSN, at, r.pos.LSN), true",
			pkg: "receiver", run: "TestPromotionInTheHold",
		},
		{
			promise: "invariant 1", breaks: "a segment's bytes are not synced",
			file: "segment/spool/segment.go",
			old:  "err = disk.SyncTo(g.f, int64(to-g.Start()))", new: "err = nil",
			pkg: "segment/spool", run: "TestPowerGoesAtEveryOperation",
		},
		{
			promise: "invariant 1", breaks: "a sealed segment's name is not synced",
			file: "segment/spool/segment.go",
			old:  "err = s.syncNames()", new: "err = nil",
			pkg: "segment/spool", run: "TestPowerGoesAtEveryOperation",
		},
		{
			promise: "invariant 1", breaks: "a segment gets its final name before its bytes are durable",
			file: "segment/spool/segment.go",
			old:  "if _, err := g.syncFile(); err != nil {\n\t\treturn err\n\t}\n\ts := g.spool", new: "s := g.spool",
			pkg: "segment/spool", run: "TestSealSyncsTheBytes",
		},
		{
			promise: "invariant 1", breaks: "after a failed fsync the kernel's word is taken at the next",
			file: "segment/spool/segment.go",
			old:  "_, err := f.WriteAt(part, at)", new: "_, err := part, error(nil)",
			pkg: "segment/spool", run: "TestBytesOfAFailedSyncAreWrittenAgain",
		},
		{
			promise: "invariant 1", breaks: "a reopened partial is taken for whole, whatever a crash left in it",
			file: "segment/spool/segment.go",
			old:  "g.beginning, g.vouchStart, g.vouchEnd = b, start, end", new: "g.beginning, g.vouchStart, g.vouchEnd = b, start, max(end, g.End())",
			pkg: "segment/spool", run: "TestPowerGoesAtEveryOperation|TestHeldBytesAreCompared|TestShortPartial",
		},
		{
			promise: "invariant 1", breaks: "the name of an object in a directory is not checked to be new",
			file: "archive/objstore/dir/put.go",
			old:  "err := os.Link(temp, s.file(key))", new: "err := os.Rename(temp, s.file(key))",
			pkg: "archive/objstore/dir", run: "TestStore",
		},

		// Stored objects do not change; one codec; two receivers do no harm.
		{
			promise: "invariant 2", breaks: "objects are overwritten",
			file: "archive/put.go",
			old:  "err := a.store.PutIfAbsent(ctx, key, frame)", new: "err := a.store.Put(ctx, key, frame)",
			pkg: "archive", run: "TestPut",
		},
		{
			promise: "invariant 2", breaks: "an object with other content is success",
			file: "archive/put.go",
			old:  "conflict.Key = key\n\treturn conflict", new: "conflict.Key = key\n\treturn nil",
			pkg: "archive", run: "TestPutSegmentExists",
		},
		{
			promise: "invariant 2", breaks: "an object of our frame's size counts as ours",
			file: "archive/put.go",
			old:  "info.CRC32C == frame.CRC32C()", new: "info.CRC32C != 0",
			pkg: "archive", run: "TestPutSegment",
		},
		{
			promise: "invariant 2", breaks: "a conflict does not stop the shipping",
			file: "uploader/uploader.go",
			old:  "case errors.Is(err, archive.ErrConflict):\n\t\t\tu.stop(err)\n\t\t\t<-ctx.Done()\n\t\t\treturn nil", new: "case errors.Is(err, archive.ErrConflict):\n\t\t\tu.finish(it)",
			pkg: "uploader", run: "TestConflictStopsShipping",
		},
		{
			promise: "invariant 2", breaks: "an archive gets two codecs",
			file: "archive/identity.go",
			old:  `id.WALCodec != "" && want.WALCodec != "" && id.WALCodec != want.WALCodec`, new: `id.WALCodec != "" && want.WALCodec == "?"`,
			pkg: "archive", run: "TestClaim",
		},
		{
			promise: "invariant 2", breaks: "a full spool waits for an archive that takes nothing any more",
			file: "receiver/stream.go",
			old:  "if err := r.uploader.Stopped(); err != nil {\n\t\t\treturn false", new: "if err := r.uploader.Stopped(); err != nil && r.size == 0 {\n\t\t\treturn false",
			pkg: "receiver", run: "TestSpoolFillsAfterShippingHasStopped",
		},

		// No gaps.
		{
			promise: "invariant 3", breaks: "the shipped position passes a segment that is not stored",
			file: "uploader/uploader.go",
			old:  "if !ok || end <= u.front.LSN {", new: "if _, behind := u.stored[u.size.Name(u.front.Timeline, n.End(u.size))]; !ok && behind {\n\t\t\tend, ok = n.End(u.size), true\n\t\t}\n\t\tif !ok || end <= u.front.LSN {",
			pkg: "uploader", run: "TestShippedIsGapless",
		},
		{
			promise: "invariant 3", breaks: "a segment leaves the spool while an older one is not stored",
			file: "uploader/uploader.go",
			old:  "case whole(it.seg):\n\t\t\treturn drop", new: "case whole(it.seg):\n\t\t\ti++",
			pkg: "uploader", run: "TestShippedIsGapless|TestShipsAndDrops|TestAStoreThatFails",
		},
		{
			promise: "invariant 3", breaks: "a base that was found counts what the spool holds unchecked",
			file: "uploader/uploader.go",
			old:  "whole(g) && g.Start() < limit.LSN", new: "whole(g) && g.Start() < 0*limit.LSN",
			pkg: "uploader", run: "TestBaseCountsOnlyWhatWasCompared",
		},
		{
			promise: "invariant 3", breaks: "a new archive begins with a segment whose elder is not stored",
			file: "uploader/uploader.go",
			old:  "u.anchored || u.oldest() == it, u.moved", new: "true, u.moved",
			pkg: "uploader", run: "TestTheOldestIsStoredFirst",
		},
		{
			promise: "invariant 3", breaks: "an empty page before a boundary is taken for proof",
			file: "receiver/overlap.go",
			old:  "(last.bytes == nil || !zero(page))", new: "(last.bytes == nil || page != nil)",
			pkg: "receiver", run: "TestSetBackBehindASwitch",
		},
		{
			promise: "invariant 3", breaks: "a slot that was streamed from is dropped when the run ends",
			file: "receiver/feedback.go",
			old:  "st.r.created = false", new: "st.r.created = st.r.created && true",
			pkg: "receiver", run: "TestASlotThatWasStreamedFromStays",
		},
		{
			promise: "invariant 2", breaks: "the half of a file is taken for a conflict",
			file: "uploader/uploader.go",
			old:  "settles := unfinished(err) && time.Since(damaged) < settling", new: "settles := unfinished(err) && damaged.IsZero()",
			pkg: "uploader", run: "TestAnObjectThatIsBeingWritten",
		},
		{
			promise: "invariant 3", breaks: "a hole does not end the archive's run",
			file: "archive/run.go",
			old:  "if number != next {", new: "if number < next {",
			pkg: "archive", run: "TestRunEnd",
		},
		{
			promise: "invariant 3", breaks: "an empty spool begins at the slot, wherever the archive ends",
			file: "receiver/resume.go",
			old:  "case !held && !ok:", new: "case !held:",
			pkg: "receiver", run: "TestEmptySpoolContinuesAtTheArchive",
		},
		{
			promise: "invariant 3", breaks: "WAL that the server has removed is tried for again and again, and never told as a gap",
			file: "receiver/resume.go",
			old:  "if !errors.Is(err, replication.ErrWALRemoved) {", new: "if errors.Is(err, replication.ErrWALRemoved) {",
			pkg: "receiver", run: "TestGapIsRefused",
		},
		{
			promise: "invariant 3", breaks: "WAL from beyond the expected position is stored",
			file: "receiver/stream.go",
			old:  "if m.Start != st.cursor {", new: "if m.Start < st.cursor {",
			pkg: "receiver", run: "TestWALWithAHoleIsRefused",
		},
		{
			promise: "invariant 3", breaks: "a standby's stale page behind a segment switch is stored",
			file: "receiver/stream.go",
			old:  "if _, err := st.pages.Write(st.rest[:n]); err != nil {", new: "if _, err := st.pages.Write(st.rest[:n]); err != nil && n == 0 {",
			pkg: "receiver", run: "TestPagesOfAnotherPlace",
		},
		{
			promise: "invariant 5", breaks: "a primary counts as set back when another receiver has shipped more since it was asked",
			file: "receiver/start.go",
			old:  "s.system.Flush = now.Flush", new: "_ = now.Flush",
			pkg: "receiver", run: "TestAnotherReceiverIsAhead",
		},

		// Histories first.
		{
			promise: "invariant 4", breaks: "a timeline's WAL is in the archive before its history",
			file: "uploader/uploader.go",
			old:  "if err := u.shipHistories(ctx, n.Timeline, method); err != nil {", new: "if err := ctx.Err(); err != nil {",
			pkg: "uploader", run: "TestNoWALBeforeItsHistory",
		},
		{
			promise: "invariant 4", breaks: "the history of a streamed timeline is not kept",
			file: "receiver/history.go",
			old:  "if err := r.spool.PutHistory(f.timeline, f.content); err != nil {", new: "if err := error(nil); err != nil && f.timeline == 0 {",
			pkg: "receiver", run: "Promotion",
		},
		{
			promise: "invariant 4", breaks: "a timeline is streamed whose history is not kept",
			file: "receiver/start.go",
			old:  "if err := r.keepHistory(histories); err != nil {", new: "if err := ctx.Err(); err != nil && histories == nil {",
			pkg: "receiver", run: "Promotion|Jump",
		},
		{
			promise: "invariant 4", breaks: "a server that cannot give its timeline's history is streamed from",
			file: "receiver/history.go",
			old:  "content, err := conn.TimelineHistory(ctx, t)\n\tif err != nil {", new: "content, err := conn.TimelineHistory(ctx, t)\n\tif err != nil {\n\t\tr.history = segment.History{Timeline: t, Ancestors: []segment.Switch{{Timeline: t - 1, At: r.pos.LSN}}}\n\t\treturn nil, nil\n\t}\n\tif err != nil {",
			pkg: "receiver", run: "TestNothingOfATimelineWithoutItsHistory",
		},
		{
			promise: "invariant 4", breaks: "a history file appears in the spool before its content is durable",
			file: "segment/spool/facts.go",
			old:  "err = f.Sync()", new: "err = nil",
			pkg: "segment/spool", run: "TestPowerGoesAtEveryOperation",
		},

		// One archive, one cluster.
		{
			promise: "invariant 5", breaks: "a foreign cluster's archive is written",
			file: "archive/identity.go",
			old:  "case id.SystemIdentifier != 0 && id.SystemIdentifier != want.SystemIdentifier:", new: "case id.SystemIdentifier != 0 && want.SystemIdentifier == 0:",
			pkg: "archive", run: "TestClaim",
		},
		{
			promise: "invariant 5", breaks: "the spool's histories do not speak against an old primary",
			file: "receiver/history.go",
			old:  `if err := checkFollowed(known, s, "the spool"); err != nil {`, new: `if err := checkFollowed(nil, s, "the spool"); err != nil && known == nil {`,
			pkg: "receiver", run: "TestDemoted",
		},
		{
			promise: "invariant 5", breaks: "the archive's histories do not speak against an old primary",
			file: "receiver/history.go",
			old:  `return checkFollowed(known, s, "the archive")`, new: `return checkFollowed(known[:0], s, "the archive")`,
			pkg: "receiver", run: "TestDemoted",
		},
		{
			promise: "invariant 5", breaks: "what another server stored of a timeline of the same number is taken for this one's",
			file: "receiver/history.go",
			old:  "if err := r.checkSame(known); err != nil {", new: "if err := r.checkSame(nil); err != nil {",
			pkg: "receiver", run: "TestTwoPromotionsToOneTimeline",
		},
		{
			promise: "invariant 5", breaks: "an old primary is waited for",
			file: "receiver/start.go",
			old:  "case r.pos.Timeline > t && s.inRecovery:", new: "case r.pos.Timeline > t:",
			pkg: "receiver", run: "TestDemoted",
		},
		{
			promise: "invariant 5", breaks: "another promoted server is followed, whatever WAL of the first the spool has",
			file: "receiver/history.go",
			old:  "case ancestor || g.Name().Timeline == t:", new: "case ancestor || g.Name().Timeline <= t:",
			pkg: "receiver", run: "TestForkedServerIsRefused",
		},
		{
			promise: "invariant 5", breaks: "the archive gets the history of a server that is refused",
			file: "receiver/start.go",
			old:  "histories, err := r.learnHistory(ctx, conn, srv)\n\tif err != nil {", new: "histories, err := r.learnHistory(ctx, conn, srv)\n\tif err == nil {\n\t\terr = r.keepHistory(histories)\n\t}\n\tif err != nil {",
			pkg: "receiver", run: "TestForkedServerIsRefused",
		},
		{
			promise: "invariant 4", breaks: "what a killed run has left of a timeline goes up before its history",
			file: "uploader/tails.go",
			old:  "if whole(g) || !u.knows(g.Name().Timeline) {", new: "if whole(g) {",
			pkg: "uploader", run: "TestNoTailWithoutAHistory",
		},
		{
			promise: "invariant 5", breaks: "what a new timeline's server has in front of the switchpoint is believed",
			file: "receiver/switch.go",
			old:  "if max(g.Written(), r.heldUpTo(g)) < at {", new: "if max(g.Written(), r.heldUpTo(g)) < at || at > 0 {",
			pkg: "receiver", run: "TestOtherHistoryBeforeTheSwitch",
		},
		{
			promise: "invariant 5", breaks: "at a boundary the old timeline's last page is not compared before the next is begun",
			file: "receiver/start.go",
			old:  "if r.pos.LSN < at || r.pos.LSN == at && r.size.Offset(at) == 0 {", new: "if r.pos.LSN < at {",
			pkg: "receiver", run: "TestOtherHistoryBeforeTheSwitch",
		},
		{
			promise: "invariant 1", breaks: "what was received beyond a switchpoint is received on the new timeline",
			file: "receiver/switch.go",
			old:  "r.pos = segment.Position{Timeline: child, LSN: min(r.pos.LSN, at)}", new: "r.pos = segment.Position{Timeline: child, LSN: r.pos.LSN}",
			pkg: "receiver", run: "TestAheadOfTheNewTimeline",
		},
		{
			promise: "invariant 1", breaks: "what was reported beyond a switchpoint is reported on the new timeline",
			file: "receiver/switch.go",
			old:  "r.reported = min(r.reported, at)", new: "_ = r.reported",
			pkg: "receiver", run: "TestAheadOfTheNewTimeline",
		},
		{
			promise: "invariant 1", breaks: "what was acknowledged beyond a switchpoint leaves the spool for nowhere",
			file: "uploader/uploader.go",
			old:  "return u.shipBeyond(ctx, it.seg, w)", new: "return nil",
			pkg: "uploader", run: "TestWhatLiesBeyondTheSwitchpointIsStored",
		},
		{
			promise: "invariant 1", breaks: "open segments wholly behind a switchpoint never go up",
			file: "receiver/switch.go",
			old:  "if g.Name().Timeline != t || g.Start() < at {", new: "if g.Name().Timeline != t || g.Start() > 0 {",
			pkg: "receiver", run: "TestAheadOfTheNewTimeline",
		},
		{
			promise: "invariant 3", breaks: "a partial whose first record began in an archived segment is never finished",
			file: "receiver/switch.go",
			old:  "_, err = g.VouchBeginning(prev)", new: "err = nil",
			pkg: "receiver", run: "TestTheOldTimelinesRestIsFinishedLater",
		},
		{
			promise: "invariant 3", breaks: "WAL is a gap that the server has in a younger timeline's file alone",
			file: "receiver/crowded.go",
			old:  "if len(ends) < 2 || l >= ends[len(ends)-2].At {", new: "if len(ends) < 200 || l >= ends[len(ends)-2].At {",
			pkg: "receiver", run: "TestSeveralSwitchesInOneSegment",
		},
		{
			promise: "invariant 1", breaks: "what was acknowledged beyond several switches in one segment stays in the spool for this run",
			file: "receiver/crowded.go",
			old:  "if st.r.holdsBeyond(a.Timeline, a.At) {", new: "if false && st.r.holdsBeyond(a.Timeline, a.At) {",
			pkg: "receiver", run: "TestSetBackTwiceInOneSegment",
		},
		{
			promise: "invariant 1", breaks: "what was acknowledged of a timeline that the new history skips stays in the spool for this run",
			file: "receiver/switch.go",
			old:  "if err := r.settle(ctx, old.Timeline, child); err != nil {", new: "if err := r.settle(ctx, child, child); err != nil {",
			pkg: "receiver", run: "TestSetBackTwiceSurvivesAPowerCut",
		},
		{
			promise: "invariant 1", breaks: "a child's segment with nothing in it is a sign that its parent's WAL is held",
			file: "receiver/resume.go",
			old:  "if !held || end.LSN < begin {", new: "if false {",
			pkg: "receiver", run: "TestAChildsSegmentIsNoClaim",
		},
		{
			promise: "invariant 3", breaks: "of several timelines that ended in a segment the partials are missing",
			file: "receiver/crowded.go",
			old:  "if err := g.Finish(g.at); err != nil {", new: "if err := error(nil); err != nil {",
			pkg: "receiver", run: "TestSeveralSwitchesInOneSegment",
		},
		{
			promise: "invariant 3", breaks: "the parent's last segment is looked for whole in the archive, and a start waits for it for good",
			file: "receiver/resume.go",
			old:  "return r.history.Owner(n.End(r.size)-1) == n.Timeline", new: "return r.history.Owner(n.Start(r.size)) == n.Timeline",
			pkg: "receiver", run: "TestTheOldTimelinesRestIsFinishedLater",
		},
		{
			promise: "invariant 5", breaks: "a primary that was set back is waited for",
			file: "receiver/start.go",
			old:  "case r.pos.Timeline == t && flush < r.pos.LSN && s.inRecovery:", new: "case r.pos.Timeline == t && flush < r.pos.LSN:",
			pkg: "receiver", run: "TestSetBack",
		},
		{
			promise: "invariant 5", breaks: "what a server that was set back sends is taken without comparing",
			file: "receiver/stream.go",
			old:  "if bytes.Equal(held, sent) {", new: "if bytes.Equal(held, held) {",
			pkg: "receiver", run: "TestSetBack",
		},
		{
			promise: "invariant 5", breaks: "bytes that the spool holds are not compared with the server's",
			file: "segment/spool/segment.go",
			old:  "if !bytes.Equal(sent, have) {", new: "if !bytes.Equal(sent, sent) {",
			pkg: "segment/spool", run: "TestHeldBytesAreCompared",
		},
		{
			promise: "invariant 5", breaks: "positions are reported before what is held was found equal",
			file: "receiver/feedback.go",
			old:  "if r.fresh || st.cursor < r.pos.LSN || st.behindUnproved() {\n\t\treturn replication", new: "if r.fresh {\n\t\treturn replication",
			pkg: "receiver", run: "TestNothingIsReportedBeforeTheOverlap",
		},

		// A delivered file is whole and durable; nothing else is "delivered".
		{
			promise: "invariant 7", breaks: "a file is delivered that may be lost",
			file: "restore/install.go",
			old:  "if err := t.Sync(); err != nil {", new: "if err := error(nil); err != nil {",
			pkg: "restore", run: "TestInstallOrder",
		},
		{
			promise: "invariant 7", breaks: "a delivered name may be lost",
			file: "restore/install.go",
			old:  "if err := f.files.syncDir(dir); err != nil {", new: "if err := error(nil); err != nil {",
			pkg: "restore", run: "TestInstallOrder",
		},
		{
			promise: "invariant 7", breaks: "half a file takes the target's name when its source fails",
			file: "restore/install.go",
			old:  "if err := fill(t); err != nil {\n\t\treturn err\n\t}", new: "_ = fill(t)",
			pkg: "restore", run: "TestInstallOrder|TestOutcomes",
		},

		{
			promise: "invariant 9", breaks: "a conflict stops the shipping only where its message is logged",
			file: "uploader/uploader.go",
			old:  "\tif first {\n\t\tu.stopped = err", new: "\tif first && u.log.Enabled(context.Background(), slog.LevelError) {\n\t\tu.stopped = err",
			pkg: "uploader", run: "TestConflictStopsShipping",
		},
		{
			promise: "invariant 9", breaks: "a full spool is noticed only when it is time to say so",
			file: "receiver/stream.go",
			old:  "st.full = true\n\tr := st.r\n\tif time.Since(r.fullSince) < fullReminder {\n\t\treturn // it fills as fast as it is emptied: told already\n\t}", new: "r := st.r\n\tif time.Since(r.fullSince) < fullReminder {\n\t\treturn\n\t}\n\tst.full = true",
			pkg: "receiver", run: "TestShutdownWhileTheSpoolIsFullAgain",
		},

		{
			promise: "invariant 10", breaks: "S3 objects are overwritten: the condition is not sent",
			file: "archive/objstore/s3/put.go",
			old:  `in.IfNoneMatch = aws.String("*")`, new: `in.IfNoneMatch = nil`,
			pkg: "archive/objstore/s3", run: "TestRequests",
		},
		{
			promise: "invariant 10", breaks: "an object that exists is deleted and written again",
			file: "archive/put.go",
			old:  "err = a.compare(ctx, key, m, frame, want)\n", new: "err = errors.Join(a.store.Delete(ctx, key), a.store.PutIfAbsent(ctx, key, frame))\n",
			pkg: "archive", run: "TestPut",
		},
		{
			promise: "invariant 10", breaks: "a store that ignores put-if-absent is used",
			file: "archive/identity.go",
			old:  "case a.single:", new: "case a.single, err == nil:",
			pkg: "archive", run: "TestClaimProbesTheCondition",
		},

		// The exit codes of fetch, in both columns.
		{
			promise: "fetch: delivered", breaks: "a delivered file is told as the archive's end",
			file: "restore/mode.go",
			old:  "case err == nil:\n\t\treturn 0", new: "case err == nil && m == Standby:\n\t\treturn 0\n\tcase err == nil:\n\t\treturn 1",
			pkg: "restore", run: "TestExitCode",
		},
		{
			promise: "fetch: proved absent", breaks: "the end of the archive stops the recovery",
			file: "restore/mode.go",
			old:  "case errors.Is(err, ErrAbsent), m == Standby:", new: "case errors.Is(err, ErrAbsent) && m == Standby, m == Standby:",
			pkg: "restore", run: "TestExitCode",
		},
		{
			promise: "fetch: proved absent", breaks: "an archive that is none (a wrong prefix) proves an absence",
			file: "restore/proof.go",
			old:  "return fmt.Errorf(\"not found, which proves nothing: %w\", err)", new: "return ErrAbsent",
			pkg: "restore", run: "TestOutcomes",
		},
		{
			promise: "fetch: proved absent", breaks: "a hole is the archive's end",
			file: "restore/proof.go",
			old:  "if err == nil && found {", new: "if err == nil && found && size == 0 {",
			pkg: "restore", run: "TestOutcomes",
		},
		{
			promise: "fetch: proved absent", breaks: "an object that cannot be decoded is absent",
			file: "restore/proof.go",
			old:  "if err := p.noOtherForm(ctx); err != nil {", new: "if err := p.noOtherForm(ctx); err != nil && !errors.Is(err, archive.ErrNoDecoder) {",
			pkg: "restore", run: "TestOutcomes",
		},
		{
			promise: "fetch: proved absent", breaks: "a history whose timeline has WAL is absent",
			file: "restore/proof.go",
			old:  "if found {\n\t\t\treturn fmt.Errorf(\"%w: %s is missing in %s, which has the timeline's WAL", new: "if found && t == 0 {\n\t\t\treturn fmt.Errorf(\"%w: %s is missing in %s, which has the timeline's WAL",
			pkg: "restore", run: "TestOutcomes",
		},
		{
			promise: "fetch: failed", breaks: "a recovery ends because the storage is down",
			file: "restore/mode.go",
			old:  "\t}\n\treturn 255", new: "\t}\n\treturn 1",
			pkg: "restore", run: "TestExitCode",
		},
		{
			promise: "fetch: failed", breaks: "a standby goes down because the storage does",
			file: "restore/mode.go",
			old:  "case errors.Is(err, ErrAbsent), m == Standby:", new: "case errors.Is(err, ErrAbsent):",
			pkg: "restore", run: "TestExitCode",
		},
		{
			promise: "fetch: failed", breaks: "a starting standby is told too early that a history is absent",
			file: "restore/fetch.go",
			old:  `return status == "starting"`, new: `return status == "stopping"`,
			pkg: "restore", run: "TestStarting",
		},
		{
			promise: "fetch: wrong flag or setting", breaks: "a wrong setting is tried again until the budget is used up",
			file: "restore/fetch.go",
			old:  "errors.As(err, &setting) ||", new: "errors.As(err, &setting) && err == nil ||",
			pkg: "restore", run: "TestOutcomes|TestBudget",
		},
		{
			promise: "fetch: wrong flag or setting", breaks: "a misspelt fetch exits with 2, and the server promotes",
			file: "cmd/walferry/main.go",
			old:  "if code == exitUsage && namesWAL(p.args) {", new: "if code == exitUsage && len(p.args) == 0 {",
			pkg: "cmd/walferry", run: "TestScript",
		},
		{
			promise: "fetch: a bug", breaks: "a panic exits with 2, and the server promotes",
			file: "cmd/walferry/main.go",
			old:  `debug.SetTraceback("crash")`, new: `debug.SetTraceback("single")`,
			pkg: "cmd/walferry", run: "TestFetchPanics",
		},
		{
			promise: "fetch: SIGTERM", breaks: "a call that the server stops looks like one that failed",
			file: "cmd/walferry/fetch.go",
			old:  "signal.Reset(number)", new: "os.Exit(1)",
			pkg: "cmd/walferry", run: "TestFetchExitCodes/signals",
		},
		{
			promise: "fetch: mode and place", breaks: "a standby is taken for a recovery",
			file: "restore/mode.go",
			old:  "p.Mode = Standby", new: "p.Mode = Recovery",
			pkg: "restore", run: "TestFindPlace",
		},
		{
			promise: "fetch: never past a fork", breaks: "WAL of the old timeline behind the fork is replayed",
			file: "restore/deliver.go",
			old:  "case n.Start(size) >= last:", new: "case n.Start(size) > last:",
			pkg: "restore", run: "TestFork",
		},
		{
			promise: "fetch: never past a fork", breaks: "a segment of the old timeline keeps what lies behind the fork",
			file: "restore/deliver.go",
			old:  "if s.seen > s.limit {", new: "if s.seen > s.limit && s.ended {",
			pkg: "restore", run: "TestFork",
		},
		{
			promise: "fetch: checks", breaks: "a short file is delivered",
			file: "restore/deliver.go",
			old:  "return s.checker.Close()", new: "return nil",
			pkg: "restore", run: "TestOutcomes",
		},
		{
			promise: "fetch: checks", breaks: "a page of another place in the WAL is delivered",
			file: "segment/page.go",
			old:  "case h.PageAddr != at:", new: "case h.PageAddr > at:",
			pkg: "segment", run: "TestPageCheckerFindsWhatIsWrong",
		},
		{
			promise: "fetch: checks", breaks: "another cluster's segment is delivered",
			file: "restore/deliver.go",
			old:  "SystemIdentifier: expected,", new: "SystemIdentifier: 0 * expected,",
			pkg: "restore", run: "TestOutcomes",
		},
		{
			promise: "fetch: proved absent", breaks: "a part of a segment in pg_wal is as good as the whole",
			file: "restore/held.go",
			old:  "return end == n.End(size), err", new: "return end <= n.End(size), err",
			pkg: "restore", run: "TestOutcomes",
		},
		// A backup exists when everything of it does.
		{
			promise: "invariant 6", breaks: "the sentinel does not wait for the WAL",
			file: "basebackup/basebackup.go",
			old:  "	if err := t.finishWAL(); err != nil {\n		return archive.Backup{}, err\n	}\n	t.report(PhaseCommit)", new: "	t.report(PhaseCommit)",
			pkg: "basebackup", run: "TestAwaitWAL|TestIncludeWAL|TestTake",
		},
		{
			promise: "invariant 6", breaks: "WAL up to the backup's start is enough",
			file: "basebackup/wait.go",
			old:  "case reach.LSN >= stop.LSN:", new: "case reach.LSN >= start.LSN:",
			pkg: "basebackup", run: "TestAwaitWAL",
		},
		{
			promise: "invariant 6", breaks: "nothing keeps the WAL that is to be included",
			file: "basebackup/wal.go",
			old:  "err = conn.CreateTemporarySlot(t.ctx, w.slot)", new: "err = nil",
			pkg: "basebackup", run: "TestIncludeWAL",
		},
		{
			promise: "invariant 6", breaks: "a file with other bytes than the server's is kept",
			file: "basebackup/files.go",
			old:  "if found != want {", new: "if found.size != want.size {",
			pkg: "basebackup", run: "TestCompare|TestRefused",
		},
		{
			promise: "invariant 6", breaks: "a file that the server lists and did not send is passed over",
			file: "basebackup/files.go",
			old:  "for path, want := range late {", new: "for path, want := range map[string]facts{} {",
			pkg: "basebackup", run: "TestCompare|TestRefused",
		},
		{
			promise: "invariant 6", breaks: "a file that the server does not list is passed over",
			file: "basebackup/files.go",
			old:  "for path, found := range early {", new: "for path, found := range map[string]facts{} {",
			pkg: "basebackup", run: "TestCompare|TestRefused",
		},
		{
			promise: "invariant 6", breaks: "an archive that lacks its end is taken for whole",
			file: "basebackup/tar.go",
			old:  "if s.zeros < 2 {", new: "if s.zeros < 0 {",
			pkg: "basebackup", run: "TestScanner|TestRefused",
		},
		{
			promise: "invariant 6", breaks: "an archive that the receiver encodes may lack its end",
			file: "basebackup/inflow.go",
			old:  "if err := f.scan.end(); err != nil {", new: "if err := error(nil); err != nil {",
			pkg: "basebackup", run: "TestRefused",
		},
		{
			promise: "invariant 6", breaks: "the sentinel comes before what describes the backup",
			file: "archive/backup_write.go",
			old:  "		{w.name.folder() + factsName, append(facts, '\\n')},\n		{w.name.folder() + metadataName, metadata},\n		{w.name.sentinelKey(), sentinel},\n",
			new:  "		{w.name.sentinelKey(), sentinel},\n		{w.name.folder() + factsName, append(facts, '\\n')},\n		{w.name.folder() + metadataName, metadata},\n",
			pkg:  "archive", run: "TestTakeBackup",
		},
		{
			promise: "invariant 6", breaks: "nobody looks whether the parts are there",
			file: "archive/backup_write.go",
			old:  "if err := w.complete(ctx, f); err != nil {", new: "if err := error(nil); err != nil {",
			pkg: "archive", run: "TestCommitRefuses",
		},
		{
			promise: "invariant 6", breaks: "an attempt writes into the folder of another",
			file: "archive/backup_write.go",
			old:  "Limit: 1}) {\n		return false, err\n", new: "Limit: 1}) {\n		_ = err\n",
			pkg: "archive", run: "TestNewBackup",
		},
		{
			promise: "invariant 6", breaks: "a backup that is deleted by half still looks whole",
			file: "archive/backup_write.go",
			old:  "	if err := a.store.Delete(ctx, n.sentinelKey()); err != nil {\n		return err\n	}\n", new: "",
			pkg: "archive", run: "TestDelete",
		},
		// Gaps.
		{
			promise: "invariant 3", breaks: "reception goes on behind a gap that was not recorded",
			file: "receiver/gap.go",
			old:  "if err := r.archive.PutGap(ctx, g, facts); err != nil {", new: "if err := r.archive.PutGap(ctx, g, facts); err != nil && ctx.Err() != nil {",
			pkg: "receiver", run: "TestGapIsRecordedFirst",
		},
		{
			promise: "invariant 3", breaks: "a gap is recorded before what lies in front of it is shipped",
			file: "receiver/gap.go",
			old:  "ok && shipped >= front {", new: "ok || shipped >= front {",
			pkg: "receiver", run: "TestGapIsRecordedFirst",
		},
		{
			promise: "invariant 3", breaks: "the other hosts are not asked for WAL that the server has removed",
			file: "receiver/gap.go",
			old:  "if len(r.o.Hosts) < 2 {", new: "if len(r.o.Hosts) > 0 {",
			pkg: "receiver", run: "TestAnotherHost",
		},
		{
			promise: "invariant 3", breaks: "less is said to be missing than is",
			file: "receiver/gap.go",
			old:  "			gone = middle\n", new: "			there = middle\n",
			pkg: "receiver", run: "TestGapSaysWhatIsMissing",
		},
		{
			promise: "invariant 3", breaks: "a start behind a gap asks for WAL in front of it",
			file: "receiver/resume.go",
			old:  "r.pos.LSN == 0 || r.pos.LSN == r.gapEnd ||", new: "r.pos.LSN == 0 ||",
			pkg: "receiver", run: "TestStoppedBehindTheRecord",
		},
		{
			promise: "invariant 3", breaks: "what lies in another receiver's gap is not asked for, though our slot has it",
			file: "receiver/resume.go",
			old:  "		if kept {\n", new: "		if kept && err != nil {\n",
			pkg: "receiver", run: "TestAGapThatTheSlotStillHas",
		},
		{
			promise: "invariant 3", breaks: "a segment in front of a gap leaves the spool before the archive has it",
			file: "receiver/gap.go",
			old:  "end > g.Start()+segment.LSN(bytes) {", new: "end > g.End()+segment.LSN(bytes) {",
			pkg: "receiver", run: "TestThePartialComesBack",
		},
		{
			promise: "invariant 3", breaks: "a hole that nobody recorded is taken for a gap",
			file: "segment/gap.go",
			old:  "if g.Start <= last && last < g.End {", new: "if last < g.End {",
			pkg: "segment", run: "TestGapsBehind",
		},
		{
			promise: "invariant 3", breaks: "the next start does not get over a recorded gap",
			file: "archive/run.go",
			old:  "behind, ok := gaps.Behind(h, size, lsn)", new: "behind, ok := gaps[:0].Behind(h, size, lsn)",
			pkg: "archive", run: "TestRunEndBehindGaps",
		},
		{
			promise: "invariant 3", breaks: "the tail objects in front of a gap are removed, since they are old",
			file: "uploader/tails.go",
			old:  "			if whole {\n				u.mu.Lock()", new: "			if whole || err == nil {\n				u.mu.Lock()",
			pkg: "uploader", run: "TestTailsInFrontOfAGapStay",
		},
		{
			promise: "invariant 10", breaks: "a lifecycle rule removes what lies in front of a gap",
			file: "uploader/tails.go",
			old:  "err := u.archive.RenewStoredTail(ctx, t, frame)", new: "err := ctx.Err()\n			_ = t",
			pkg: "uploader", run: "TestTailsInFrontOfAGapStay",
		},
		{
			promise: "fetch: proved absent", breaks: "a segment in a recorded gap is the end, while nothing is stored behind it",
			file: "restore/proof.go",
			old:  "own || slices.Contains(heirs, g.Timeline) {", new: "own && err != nil {",
			pkg: "restore", run: "TestOutcomes|TestTails",
		},
		{
			promise: "restore: what cannot be reached is refused", breaks: "a recorded gap is taken for the end of the WAL, while nothing is stored behind it",
			file: "restore/recovery/plan.go",
			old:  "		if g.End > at {\n", new: "		if g.End < at {\n",
			pkg: "restore/recovery", run: "TestRefused",
		},
		// What is restored is what was backed up.
		{
			promise: "restore: nothing is missing", breaks: "a file that no part has is passed over",
			file: "restore/unpack/unpack.go",
			old:  "return u.inventory.missing()", new: "return nil",
			pkg: "restore/unpack", run: "TestDamaged|TestWALG",
		},
		{
			promise: "restore: nothing is missing", breaks: "a file with other bytes than the manifest's is kept",
			file: "restore/unpack/inventory.go",
			old:  "if e.size != size || e.known && e.crc != crc {", new: "if e.size != size {",
			pkg: "restore/unpack", run: "TestDamaged|TestLostFacts",
		},
		{
			promise: "restore: nothing is missing", breaks: "a backup without walferry.json is not held against its manifest",
			file: "restore/unpack/parts.go",
			old:  "if size, ok := sizes[manifestName]; ok {", new: "if size, ok := sizes[manifestName]; ok && size < 0 {",
			pkg: "restore/unpack", run: "TestLostFacts",
		},
		{
			promise: "restore: what is unfinished does not start", breaks: "pg_control has its name before the rest is there",
			file: "restore/unpack/name.go",
			old:  `hiddenControl = controlName + ".unpack"`, new: "hiddenControl = controlName",
			pkg: "restore/unpack", run: "TestCrash",
		},
		{
			promise: "restore: what is unfinished does not start", breaks: "pg_control has its name before the recovery settings are there",
			file: "restore/unpack/unpack.go",
			old:  "	if u.o.Finish != nil {\n", new: "	if err := u.tree.rename(hiddenControl, controlName); err != nil {\n		return err\n	}\n	defer func() { _ = u.tree.rename(controlName, hiddenControl) }()\n	if u.o.Finish != nil {\n",
			pkg: "restore/unpack", run: "TestCrash|TestUnpack|TestDurable",
		},
		{
			promise: "restore: what cannot be reached is refused", breaks: "a backup whose WAL is missing is restored",
			file: "restore/recovery/plan.go",
			old:  "	if !whole {\n		missing :=", new: "	if !whole && b.Stop.LSN == 0 {\n		missing :=",
			pkg: "restore/recovery", run: "TestRefused",
		},
		{
			promise: "restore: what cannot be reached is refused", breaks: "a target behind the archive's end is taken",
			file: "restore/recovery/plan.go",
			old:  "if t.LSN != nil && *t.LSN >= reach.LSN {", new: "if t.LSN != nil && *t.LSN == 0 {",
			pkg: "restore/recovery", run: "TestRefused",
		},
		{
			promise: "restore: what cannot be reached is refused", breaks: "a backup that is not consistent at the target is chosen",
			file: "restore/recovery/plan.go",
			old:  "return b.Stop.LSN <= *t.LSN", new: "return b.Start.LSN <= *t.LSN",
			pkg: "restore/recovery", run: "TestMakePlan|TestRefused",
		},
		{
			promise: "restore: what cannot be reached is refused", breaks: "a hole in the WAL is taken for its end",
			file: "restore/recovery/plan.go",
			old:  "if t.none() && !p.o.StopAtGap {", new: "if t.none() && p.o.StopAtGap {",
			pkg: "restore/recovery", run: "TestRefused",
		},
	}
}
