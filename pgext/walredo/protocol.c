/*
 * protocol.c
 *	  Messages on the pipe: a kind byte, a big-endian length that counts itself, a payload. Answers are bare pages.
 *
 *	 B  begin   tag                    fork u8, then tablespace, database, relation, block as u32
 *	 P  page    tag, 8192 bytes
 *	 A  apply   end LSN u64, record    the record in PostgreSQL's own byte order, xl_tot_len bytes
 *	 G  get     tag                    answered by 8192 bytes
 *	 H  ping                           answered by 8192 zero bytes
 *
 * Everything that comes from the pipe is checked here, before anybody uses it. What is inside of a record is checked by
 * PostgreSQL's decoder, and beyond that by the sandbox.
 */
#include "walredo.h"

#include <errno.h>
#include <unistd.h>

#include "port/pg_bswap.h"

#define TAG_SIZE 17
#define HEAD_SIZE 5

/*
 * A record that changes pages has at most 33 blocks with 64 KiB of data and one page image each; nothing larger is a record for
 * us. This bounds the memory of a request.
 */
#define RECORD_SIZE_MAX (8 * 1024 * 1024)
#define INPUT_SIZE (128 * 1024)

static MemoryContext protocol_context;
static char *input;				/* what has been read ahead */
static size_t input_start;
static size_t input_end;
static char *payload;			/* of the current message, MAXALIGNed + 8 so that the record after the LSN is aligned too */
static size_t payload_size;

void
protocol_init(MemoryContext context)
{
	protocol_context = context;
	input = MemoryContextAlloc(context, INPUT_SIZE);
	payload_size = INPUT_SIZE;
	payload = MemoryContextAlloc(context, payload_size);
}

/* Returns false at the end of input; that is an error unless it comes at the border of a message. */
static bool
take(char *to, size_t n, bool at_border)
{
	while (n > 0)
	{
		size_t		have = input_end - input_start;

		if (have == 0)
		{
			ssize_t		got = read(STDIN_FILENO, input, INPUT_SIZE);

			if (got < 0 && errno == EINTR)
				continue;
			if (got < 0)
				ereport(FATAL,
						(errcode_for_socket_access(),
						 errmsg("could not read a redo request: %m")));
			if (got == 0)
			{
				if (at_border)
					return false;
				ereport(FATAL,
						(errcode(ERRCODE_PROTOCOL_VIOLATION),
						 errmsg("end of input inside of a redo request")));
			}
			input_start = 0;
			input_end = got;
			continue;
		}
		have = Min(have, n);
		memcpy(to, input + input_start, have);
		input_start += have;
		to += have;
		n -= have;
		at_border = false;
	}
	return true;
}

static uint32
get_u32(const char *p)
{
	uint32		v;

	memcpy(&v, p, sizeof(v));
	return pg_ntoh32(v);
}

static void
get_tag(const char *p, RedoTag *tag)
{
	uint8		fork = (uint8) p[0];

	if (fork > INIT_FORKNUM)
		ereport(FATAL,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("invalid fork number %u in a redo request", fork)));
	tag->fork = (ForkNumber) fork;
	tag->locator.spcOid = get_u32(p + 1);
	tag->locator.dbOid = get_u32(p + 5);
	tag->locator.relNumber = get_u32(p + 9);
	tag->block = get_u32(p + 13);
	if (tag->locator.relNumber == 0 || tag->block > MaxBlockNumber)
		ereport(FATAL,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("invalid block %u of relation %u in a redo request", tag->block, tag->locator.relNumber)));
}

/* Checks the length of a message's payload against what its kind allows. */
static void
check_length(char kind, size_t n)
{
	bool		good;

	switch (kind)
	{
		case 'B':
		case 'G':
			good = n == TAG_SIZE;
			break;
		case 'P':
			good = n == TAG_SIZE + BLCKSZ;
			break;
		case 'A':
			good = n >= sizeof(uint64) + SizeOfXLogRecord && n <= sizeof(uint64) + RECORD_SIZE_MAX;
			break;
		case 'H':
			good = n == 0;
			break;
		default:
			ereport(FATAL,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("invalid frontend message type %d", (unsigned char) kind)));
	}
	if (!good)
		ereport(FATAL,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("invalid length %zu of redo message \"%c\"", n, kind)));
}

bool
read_message(RedoMessage *message)
{
	char		head[HEAD_SIZE];
	uint32		length;
	size_t		n;

	if (!take(head, HEAD_SIZE, true))
		return false;
	message->kind = head[0];
	length = get_u32(head + 1);
	n = length >= sizeof(uint32) ? length - sizeof(uint32) : SIZE_MAX;
	check_length(message->kind, n);
	if (n > payload_size)
	{
		pfree(payload);
		payload_size = n;
		payload = MemoryContextAlloc(protocol_context, payload_size);
	}
	(void) take(payload, n, false);

	switch (message->kind)
	{
		case 'B':
		case 'G':
			get_tag(payload, &message->tag);
			break;
		case 'P':
			get_tag(payload, &message->tag);
			message->page = payload + TAG_SIZE;
			break;
		case 'A':
			message->end_lsn = ((uint64) get_u32(payload) << 32) | get_u32(payload + 4);
			/* palloc'd memory is MAXALIGNed, and so is the record behind the eight bytes of the LSN */
			message->record = (XLogRecord *) (payload + sizeof(uint64));
			n -= sizeof(uint64);
			if (message->record->xl_tot_len != n)
				ereport(FATAL,
						(errcode(ERRCODE_PROTOCOL_VIOLATION),
						 errmsg("mismatch between record (%u) and message size (%zu)",
								message->record->xl_tot_len, n)));
			break;
		default:
			break;
	}

	/* One huge record must not make the process large for the rest of its life. */
	if (payload_size > INPUT_SIZE && n < INPUT_SIZE && message->kind == 'B')
	{
		pfree(payload);
		payload_size = INPUT_SIZE;
		payload = MemoryContextAlloc(protocol_context, payload_size);
	}
	return true;
}

void
write_page(const char *page)
{
	size_t		n = BLCKSZ;

	while (n > 0)
	{
		ssize_t		done = write(STDOUT_FILENO, page, n);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			ereport(FATAL,
					(errcode_for_socket_access(),
					 errmsg("could not write a page: %m")));
		page += done;
		n -= done;
	}
}
