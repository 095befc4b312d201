/*
 * walredo.h
 *	  A PostgreSQL backend that does nothing but WAL redo, one page at a time, for whoever holds its pipes.
 *
 * The idea
 * --------
 * PostgreSQL's redo functions are the definition of what a WAL record does to a page. They live in every server, but expect a
 * startup process, a data directory and all pages that a record mentions. This module, loaded into a single-user backend on a
 * scratch data directory (session_preload_libraries), never returns to it: it reads requests from descriptor 0, calls
 * rm_redo() for each record and writes the page to descriptor 1.
 *
 * To a redo function the backend looks like one in recovery that has not reached consistency. Two made-up relations exist:
 *
 *	 target   holds the page that is rebuilt, under its real fork and block number (redo writes block numbers into pages)
 *	 others   holds every other page that a record mentions, each so new that nothing has to be done to it
 *
 * All pages are planted in the buffer pool and dropped from it again; no page is ever read from or written to a file. That
 * rests on three beliefs of PostgreSQL in recovery: a cached relation length is true, a page in the pool is not read, and a
 * free buffer is taken before a used one is evicted.
 *
 * Parts: protocol.c (messages), replay.c (the pages and the records), sandbox.c (what the process may no longer do),
 * walredo.c (start-up and the loop).
 */
#ifndef WALREDO_H
#define WALREDO_H

#include "compat.h"

/* The block that a request is about, as on the wire. */
typedef struct RedoTag
{
	RelFileLocator locator;
	ForkNumber	fork;
	BlockNumber block;
} RedoTag;

/* One message of the parent. Its pointers are valid until the next call of read_message(). */
typedef struct RedoMessage
{
	char		kind;			/* B, P, A, G or H */
	RedoTag		tag;			/* B, P, G */
	const char *page;			/* P: BLCKSZ bytes, not aligned */
	XLogRecPtr	end_lsn;		/* A */
	XLogRecord *record;			/* A: xl_tot_len bytes, MAXALIGNed */
} RedoMessage;

/* protocol.c */
extern void protocol_init(MemoryContext context);
extern bool read_message(RedoMessage *message);
extern void write_page(const char *page);

/* replay.c */
extern void replay_init(MemoryContext context);
extern void begin_block(const RedoTag *tag);
extern void push_page(const RedoTag *tag, const char *page);
extern void apply_record(XLogRecord *record, XLogRecPtr end_lsn);
extern void get_page(const RedoTag *tag);

/* sandbox.c */
extern void leave_no_traces(void);
extern void drop_inherited_descriptors(void);
extern void enter_sandbox(int memory_limit_mb, bool filter_system_calls);

#endif							/* WALREDO_H */
