/*
 * In a machine that Bochs emulates: what comes in on standard input goes out of Bochs on its own.
 *
 * With "port_e9_hack" Bochs prints each byte that is written to I/O port 0xe9 (iodev/unmapped.cc).
 * A serial port of its takes 87 microseconds of the machine's time for a byte; this takes none.
 *
 * First it takes the receive FIFO from the serial port on which the line comes in, which Linux has
 * switched on: into a FIFO Bochs puts the next byte after 87 microseconds whether there is room or
 * not, without one it waits until the last was taken (rx_timer() of iodev/serial.cc). Linux's driver
 * reads as long as there is something, and so need not know.
 */
#include <stdio.h>
#include <sys/io.h>
#include <unistd.h>

#define PORT 0xe9
#define FIFO_CONTROL 0x2fa	/* of COM2 */

int main(void)
{
	static char text[65536];
	ssize_t length;

	if (ioperm(PORT, 1, 1) || ioperm(FIFO_CONTROL, 1, 1)) {
		perror("no access to I/O ports");
		return 1;
	}
	outb(0, FIFO_CONTROL);
	while ((length = read(0, text, sizeof(text))) > 0)
		outsb(PORT, text, length);
	return length < 0;
}
