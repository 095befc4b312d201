/*
 * replay.c
 *	  Pages planted in the buffer pool, and PostgreSQL's redo functions let loose on them.
 *
 * Invariants:
 *	 - Between requests the pool holds no page of the two made-up relations, and no length of them is cached.
 *	 - While a record is replayed, every block that its redo function may look at lies below the cached length of its
 *	   relation's fork, and those that redo reads are in the pool. So neither a file is read nor extended.
 *	 - The pool always has free buffers (a record has at most 33 blocks), so no planted page is evicted. Their LSNs are far
 *	   beyond the end of the scratch directory's WAL; flushing one would be FATAL.
 */
#include "walredo.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogutils.h"
#include "access/heapam_xlog.h"
#include "catalog/pg_control.h"
#include "miscadmin.h"
#include "storage/fsm_internals.h"
#include "utils/memutils.h"

/* The made-up relations. Their numbers are free in any scratch directory that initdb made. */
static const RelFileLocator target_locator = {1663, 1, 99999};
static const RelFileLocator others_locator = {1663, 1, 99998};

/* Newer than any record: a page with this LSN is "done" for every redo function. */
#define HUGE_LSN (PG_UINT64_MAX >> 1)

/* One bit of the visibility map's two per heap block, in a page without its header. */
#define HEAP_BLOCKS_PER_MAP_PAGE ((BLCKSZ - MAXALIGN(SizeOfPageHeaderData)) * 4)

/* Levels of the free space map's tree of pages: three are enough for any block number while a page has 1626 slots. */
#define FSM_LEVELS 3

static XLogReaderState *reader;
static MemoryContext record_context;
static DecodedXLogRecord *decoded;
static size_t decoded_size;

/* The request that is being worked on. */
static struct
{
	bool		active;			/* between B and G */
	bool		has_page;		/* the target is in the pool */
	bool		was_new;		/* the base page was new: redo may have noted it as invalid */
	RedoTag		tag;			/* as asked */
	ForkNumber	fork;			/* as replayed, see replay_fork() */
	BlockNumber map_block;		/* visibility map page of the target that is planted, or InvalidBlockNumber */
	BlockNumber fsm_block;		/* likewise, free space map */
}			request;

/*
 * Init forks are replayed as main forks. Redo treats them the same but for flushing them at once, which is neither possible
 * nor wanted here.
 */
static inline ForkNumber
replay_fork(ForkNumber fork)
{
	return fork == INIT_FORKNUM ? MAIN_FORKNUM : fork;
}

static inline SMgrRelation
open_relation(RelFileLocator locator)
{
	return smgropen(locator, INVALID_PROC_NUMBER);
}

/* Drops the pages of one fork from the pool, and the length that was made up for it. */
static void
forget(SMgrRelation relation, ForkNumber fork)
{
	BlockNumber first = 0;

	/* one fork a call: 15.x overruns a stack array with four */
	DropRelationBuffers(relation, &fork, 1, &first);
	relation->smgr_cached_nblocks[fork] = InvalidBlockNumber;
}

/* Makes a block exist: in recovery the cached length is believed, and redo never extends the file. */
static inline void
cover(SMgrRelation relation, ForkNumber fork, BlockNumber block)
{
	BlockNumber *length = &relation->smgr_cached_nblocks[fork];

	if (*length == InvalidBlockNumber || *length <= block)
		*length = block + 1;
}

/*
 * Puts a page into the pool without touching a file: this read mode reads nothing. NULL plants an initialised, empty page that
 * is newer than any record. It is marked dirty, as redo would do, so that it is not dirtied "for a hint", which is logged.
 */
static void
plant(SMgrRelation relation, RelFileLocator locator, ForkNumber fork, BlockNumber block, const char *page)
{
	Buffer		buffer;

	cover(relation, fork, block);
	buffer = ReadBufferWithoutRelcache(locator, fork, block, RBM_ZERO_AND_LOCK, NULL, true);
	if (page)
		memcpy(BufferGetPage(buffer), page, BLCKSZ);
	else
	{
		PageInit(BufferGetPage(buffer), BLCKSZ, 0);
		PageSetLSN(BufferGetPage(buffer), HUGE_LSN);
	}
	MarkBufferDirty(buffer);
	UnlockReleaseBuffer(buffer);
}

/* The page of the free space map in which a heap block's slot is: pages of a tree, numbered depth first. */
static BlockNumber
fsm_page_of(BlockNumber heap_block)
{
	BlockNumber page = heap_block / SlotsPerFSMPage;
	BlockNumber before = 0;

	for (int level = 0; level < FSM_LEVELS; level++)
	{
		before += page + 1;
		page /= SlotsPerFSMPage;
	}
	return before - 1;
}

/*
 * Heap redo also touches the visibility map (it clears bits) and the free space map of the relation that its first block
 * belongs to. The page server keeps the first by other means and does not trust the second, so what is done to these pages
 * does not matter, but they have to be there.
 */
static void
plant_heap_maps(BlockNumber heap_block, bool of_target)
{
	BlockNumber map_block = heap_block / HEAP_BLOCKS_PER_MAP_PAGE;
	BlockNumber fsm_block = fsm_page_of(heap_block);
	RelFileLocator locator = of_target ? target_locator : others_locator;
	SMgrRelation relation = open_relation(locator);

	/* never over the page that is asked for */
	if (of_target && request.fork != MAIN_FORKNUM)
		return;
	if (!of_target || request.map_block != map_block)
		plant(relation, locator, VISIBILITYMAP_FORKNUM, map_block, NULL);
	if (!of_target || request.fsm_block != fsm_block)
		plant(relation, locator, FSM_FORKNUM, fsm_block, NULL);
	if (of_target)
	{
		request.map_block = map_block;
		request.fsm_block = fsm_block;
	}
}

/* Refuses records whose redo does something else than change pages: it would act on the scratch directory. */
static void
check_kind(const XLogRecord *record)
{
	uint8		info = record->xl_info & ~XLR_INFO_MASK;

	switch (record->xl_rmid)
	{
		case RM_HEAP_ID:
		case RM_BTREE_ID:
		case RM_HASH_ID:
		case RM_GIN_ID:
		case RM_GIST_ID:
		case RM_SEQ_ID:
		case RM_SPGIST_ID:
		case RM_BRIN_ID:
		case RM_GENERIC_ID:
			return;
		case RM_XLOG_ID:
			if (info == XLOG_FPI || info == XLOG_FPI_FOR_HINT)
				return;
			break;
		case RM_HEAP2_ID:
			if ((info & XLOG_HEAP_OPMASK) != XLOG_HEAP2_REWRITE)
				return;
			break;
		default:
			break;
	}
	ereport(FATAL,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("record of resource manager %u, info %02X, is not a change of pages",
					record->xl_rmid, record->xl_info)));
}

static void
decode(XLogRecord *record, XLogRecPtr end_lsn)
{
	size_t		size = DecodeXLogRecordRequiredSpace(record->xl_tot_len);
	char	   *error = NULL;

	if (size > decoded_size)
	{
		if (decoded)
			pfree(decoded);
		decoded = MemoryContextAlloc(GetMemoryChunkContext(reader->errormsg_buf), size);
		decoded_size = size;
	}
	if (!DecodeXLogRecord(reader, decoded, record, end_lsn, &error))
		ereport(FATAL,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not decode the record that ends at %X/%X: %s",
						LSN_FORMAT_ARGS(end_lsn), error ? error : "no reason given")));
	reader->record = decoded;
	/* redo uses only the end, as the page's new LSN */
	reader->ReadRecPtr = end_lsn;
	reader->EndRecPtr = end_lsn;
}

void
replay_init(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	reader = XLogReaderAllocate(wal_segment_size, NULL, XL_ROUTINE(), NULL);
	if (!reader)
		ereport(FATAL,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while allocating a WAL reader.")));
	record_context = AllocSetContextCreate(context, "walredo record", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(old);

	for (int id = 0; id <= RM_MAX_BUILTIN_ID; id++)
		if (RmgrTable[id].rm_startup)
			RmgrTable[id].rm_startup();

	/*
	 * Create and open every fork now. Redo asks for it each time, which costs nothing once it is open, and opening files will be
	 * forbidden.
	 */
	for (ForkNumber fork = MAIN_FORKNUM; fork < INIT_FORKNUM; fork++)
	{
		smgrcreate(open_relation(target_locator), fork, true);
		smgrcreate(open_relation(others_locator), fork, true);
	}
	/* What was read of the catalogs must not take up the pool, nor be written back, which would open files. */
	DropDatabaseBuffers(MyDatabaseId);
	DropDatabaseBuffers(InvalidOid);
	for (ForkNumber fork = MAIN_FORKNUM; fork < INIT_FORKNUM; fork++)
	{
		forget(open_relation(target_locator), fork);
		forget(open_relation(others_locator), fork);
	}
}

/* Drops all that the last request left, also one that was broken off. */
static void
end_request(void)
{
	SMgrRelation relation = open_relation(target_locator);

	forget(relation, request.fork);
	if (request.map_block != InvalidBlockNumber)
	{
		forget(relation, VISIBILITYMAP_FORKNUM);
		forget(relation, FSM_FORKNUM);
	}
	if (request.was_new)
		XLogDropRelation(target_locator, request.fork);
	request.active = false;
}

void
begin_block(const RedoTag *tag)
{
	if (request.active)
		end_request();
	request.active = true;
	request.has_page = false;
	request.was_new = false;
	request.tag = *tag;
	request.fork = replay_fork(tag->fork);
	request.map_block = InvalidBlockNumber;
	request.fsm_block = InvalidBlockNumber;
}

/* Checks that a message belongs to the request that was begun. */
static void
check_tag(const RedoTag *tag, const char *what)
{
	if (!request.active || !RelFileLocatorEquals(tag->locator, request.tag.locator) ||
		tag->fork != request.tag.fork || tag->block != request.tag.block)
		ereport(FATAL,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("%s for a block that was not begun", what)));
}

void
push_page(const RedoTag *tag, const char *page)
{
	check_tag(tag, "page");
	plant(open_relation(target_locator), target_locator, request.fork, tag->block, page);
	request.has_page = true;
	request.was_new = ((const PageHeaderData *) page)->pd_upper == 0;
}

/*
 * Points the blocks of the decoded record at the made-up relations and prepares the pages that redo will ask for. Returns the
 * set of forks of `others` that got pages, as bits.
 */
static unsigned
redirect_blocks(void)
{
	bool		is_heap = decoded->header.xl_rmid == RM_HEAP_ID || decoded->header.xl_rmid == RM_HEAP2_ID;
	SMgrRelation others = open_relation(others_locator);
	bool		first_is_target = false;
	bool		found = false;
	unsigned	forks = 0;

	for (int id = 0; id <= decoded->max_block_id; id++)
	{
		DecodedBkpBlock *block = &decoded->blocks[id];
		bool		is_restored = block->has_image && block->apply_image;
		bool		is_initialised = (block->flags & BKPBLOCK_WILL_INIT) != 0;

		if (!block->in_use)
			continue;
		if (block->forknum > INIT_FORKNUM || block->blkno > MaxBlockNumber)
			ereport(FATAL,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("record refers to block %u of fork %d", block->blkno, (int) block->forknum)));
		if (block->forknum == request.tag.fork && block->blkno == request.tag.block &&
			RelFileLocatorEquals(BLOCK_LOCATOR(block), request.tag.locator))
		{
			if (!request.has_page && !is_restored && !is_initialised)
				ereport(FATAL,
						(errcode(ERRCODE_PROTOCOL_VIOLATION),
						 errmsg("no page was given and the first record does not make one")));
			BLOCK_LOCATOR(block) = target_locator;
			block->forknum = request.fork;
			found = true;
			if (id == 0)
				first_is_target = true;
			continue;
		}
		BLOCK_LOCATOR(block) = others_locator;
		block->forknum = replay_fork(block->forknum);
		/*
		 * Blocks that redo initialises must lie below the cached length too: extending the file would fill the pool with zero
		 * pages and evict planted ones.
		 */
		cover(others, block->forknum, block->blkno);
		/*
		 * The rest must be found (BRIN asks their buffer for its number, whatever its state) and need nothing. Images stay:
		 * some redo functions insist on all of them.
		 */
		if (!is_restored && !is_initialised)
			plant(others, others_locator, block->forknum, block->blkno, NULL);
		forks |= 1u << block->forknum;
	}
	if (!found)
		ereport(FATAL,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("record does not refer to block %u of fork %d of relation %u/%u/%u",
						request.tag.block, (int) request.tag.fork, request.tag.locator.spcOid,
						request.tag.locator.dbOid, request.tag.locator.relNumber)));

	for (int id = 0; is_heap && id <= decoded->max_block_id; id++)
	{
		DecodedBkpBlock *block = &decoded->blocks[id];
		bool		is_target;

		if (!block->in_use || block->forknum != MAIN_FORKNUM)
			continue;
		/* the visibility map is that of the first block's relation, the free space map that of the block's own */
		is_target = RelFileLocatorEquals(BLOCK_LOCATOR(block), target_locator);
		plant_heap_maps(block->blkno, first_is_target);
		if (is_target != first_is_target)
			plant_heap_maps(block->blkno, is_target);
		if (!first_is_target || !is_target)
			forks |= 1u << VISIBILITYMAP_FORKNUM | 1u << FSM_FORKNUM;
	}
	return forks;
}

void
apply_record(XLogRecord *record, XLogRecPtr end_lsn)
{
	SMgrRelation others = open_relation(others_locator);
	MemoryContext old;
	unsigned	forks;

	if (!request.active)
		ereport(FATAL,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("record without a block that was begun")));
	check_kind(record);
	decode(record, end_lsn);
	forget_invalidations(decoded);
	forks = redirect_blocks();
	cover(open_relation(target_locator), request.fork, request.tag.block);

	old = MemoryContextSwitchTo(record_context);
	RmgrTable[record->xl_rmid].rm_redo(reader);
	MemoryContextSwitchTo(old);
	MemoryContextReset(record_context);

	/* Or a later record would find a half-made page under the same number. */
	for (ForkNumber fork = MAIN_FORKNUM; fork < INIT_FORKNUM; fork++)
		if (forks & (1u << fork))
			forget(others, fork);
	reader->record = NULL;
	request.has_page = true;
}

void
get_page(const RedoTag *tag)
{
	Buffer		buffer;

	check_tag(tag, "get");
	if (!request.has_page)
		ereport(FATAL,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("get for a block that has neither a page nor records")));
	cover(open_relation(target_locator), request.fork, tag->block);
	buffer = ReadBufferWithoutRelcache(target_locator, request.fork, tag->block, RBM_NORMAL, NULL, true);
	write_page(BufferGetPage(buffer));
	ReleaseBuffer(buffer);
	end_request();
}
