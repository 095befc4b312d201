/*
 * compat.h
 *	  The differences between PostgreSQL 15, 16, 17 and 18 that this extension meets; nowhere else is a version compared.
 *
 * 16 renamed RelFileNode to RelFileLocator together with its fields and the functions around it; 17 renamed the backend id of
 * smgropen(); 17 gave the read mode to the extend functions. The rest of the code is written in the words of 18.
 */
#ifndef WALREDO_COMPAT_H
#define WALREDO_COMPAT_H

#include "postgres.h"

#include "access/rmgr.h"
#include "access/xlogreader.h"
#include "storage/bufmgr.h"
#include "storage/smgr.h"

#if PG_VERSION_NUM < 150000
#error "walredo needs PostgreSQL 15 or newer"
#endif

#if PG_VERSION_NUM < 160000
typedef RelFileNode RelFileLocator;
typedef Oid RelFileNumber;
#define spcOid spcNode
#define dbOid dbNode
#define relNumber relNode
#define RelFileLocatorEquals(a, b) RelFileNodeEquals(a, b)
#define DropRelationBuffers(smgr, forks, nforks, first) DropRelFileNodeBuffers(smgr, forks, nforks, first)
#define BLOCK_LOCATOR(block) ((block)->rnode)
#else
#define BLOCK_LOCATOR(block) ((block)->rlocator)
#endif

#if PG_VERSION_NUM < 170000
#define INVALID_PROC_NUMBER InvalidBackendId
#endif

/*
 * From 18 on an inplace update carries the cache invalidations of its transaction (spec stock.md 2), and redo acts on them: it removes
 * the relation cache's init file of the database. Nobody caches anything here, and files are out of reach.
 */
#if PG_VERSION_NUM >= 180000
#include "access/heapam_xlog.h"

static inline void
forget_invalidations(DecodedXLogRecord *record)
{
	if (record->header.xl_rmid == RM_HEAP_ID &&
		(record->header.xl_info & XLOG_HEAP_OPMASK) == XLOG_HEAP_INPLACE &&
		record->main_data_len >= MinSizeOfHeapInplace)
	{
		xl_heap_inplace *inplace = (xl_heap_inplace *) record->main_data;

		inplace->nmsgs = 0;
		inplace->relcacheInitFileInval = false;
	}
}
#else
static inline void
forget_invalidations(DecodedXLogRecord *record)
{
}
#endif

#endif							/* WALREDO_COMPAT_H */
