/*
 * walredo.c
 *	  Start-up of the redo process and its request loop. See walredo.h for the idea.
 *
 * Started as
 *
 *	 postgres --single -D SCRATCH -c session_preload_libraries=/path/to/walredo.so [-c walredo.memory_limit=MB] template1
 *
 * Options are ordinary settings: walredo.memory_limit, walredo.seccomp; wal_log_hints says whether the *source* of the WAL logs
 * hint bits (wal_log_hints or checksums), which decides whether HEAP2_VISIBLE sets the heap page's LSN.
 */
#include "walredo.h"

#include <limits.h>
#include <unistd.h>

#include "access/xlogutils.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/memutils.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

static int	memory_limit_mb = 256;
static bool filter_system_calls = true;

/*
 * Leaves at once, whatever the reason. An ordinary exit would write a shutdown checkpoint, and with it the made-up pages; it
 * would also need system calls that the sandbox forbids. The message has been printed before exit callbacks run, and ours, the
 * last one registered, is called first.
 */
static void
leave(int code, Datum arg)
{
	_exit(code);
}

static void
define_settings(void)
{
	DefineCustomIntVariable("walredo.memory_limit",
							"Address space that redo may use beyond what the server has mapped at start.",
							NULL, &memory_limit_mb, 256, 16, INT_MAX / 2, PGC_SU_BACKEND, GUC_UNIT_MB,
							NULL, NULL, NULL);
	DefineCustomBoolVariable("walredo.seccomp",
							 "Forbids all system calls but those that redo needs.",
							 NULL, &filter_system_calls, true, PGC_SU_BACKEND, 0,
							 NULL, NULL, NULL);
}

/* Serves requests until the parent closes its end of the pipe. */
static void
serve(void)
{
	RedoMessage message;
	static const PGAlignedBlock zeros;

	while (read_message(&message))
	{
		switch (message.kind)
		{
			case 'B':
				begin_block(&message.tag);
				break;
			case 'P':
				push_page(&message.tag, message.page);
				break;
			case 'A':
				apply_record(message.record, message.end_lsn);
				break;
			case 'G':
				get_page(&message.tag);
				break;
			case 'H':
				write_page(zeros.data);
				break;
			default:
				/* read_message() lets no other kind pass */
				pg_unreachable();
		}
	}
}

/*
 * Takes the backend over. We are called at the end of InitPostgres(), inside its transaction: shared memory, buffer pool,
 * storage manager and a resource owner are there, and nothing has been printed to standard output yet. There is no handler
 * for errors, so that every ERROR is FATAL: a request that fails ends the process, and the parent starts another.
 */
void
_PG_init(void)
{
	MemoryContext context;

	define_settings();
	if (IsUnderPostmaster || IsPostmasterEnvironment)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("walredo can only be loaded by a single-user backend"),
				 errhint("It takes the backend over and never returns it; the page server starts it.")));

	before_shmem_exit(leave, 0);
	leave_no_traces();

	context = AllocSetContextCreate(TopMemoryContext, "walredo", ALLOCSET_DEFAULT_SIZES);
	protocol_init(context);
	drop_inherited_descriptors();

	InRecovery = true;			/* but never consistent: a reference to a missing page is noted, not fatal */
	replay_init(context);
	enter_sandbox(memory_limit_mb, filter_system_calls);

	serve();
	_exit(0);
}
