/* ifetch: the CPU fetches an instruction from the page. */
#include <string.h>
#include <sys/mman.h>

#include "../probe.h"

enum { INTO = 16 }; /* where the code is, so that the byte itself stays as it is */

/*
 * The first touch leaves a function that returns the byte in its page, and both touches call what
 * is there. The instruction that touches is in the page, so it has no address beforehand. A page
 * that was not the first touch's may hold zeroes, which are code, too (add %al, (%rax)): rax
 * points to where they do no harm, until they end.
 */
static enum touched ifetch(const struct place *place, unsigned int *value)
{
	static unsigned char scratch[8];
	static int known;
	unsigned char *code = (unsigned char *)place->byte + INTO;
	unsigned long page = (unsigned long)place->byte & ~(PAGE - 1);
	unsigned long result = (unsigned long)scratch;

	if (mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC))
		return TOUCHED_ERRNO;
	if (!known) {
		/* mov $BYTE, %eax; ret */
		unsigned char text[] = { 0xb8, *place->byte, 0, 0, 0, 0xc3 };

		memcpy(code, text, sizeof(text));
		known = 1;
	}
	__asm__ volatile("call *%1" : "+a"(result) : "r"(code) : "memory", "cc");
	*value = result & 0xff;
	return TOUCHED_VALUE;
}

ACCESS(ifetch, .touch = ifetch);
