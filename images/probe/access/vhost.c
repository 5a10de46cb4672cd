/*
 * vhost: the host's kernel loads the byte, for a network card of the guest's.
 *
 * The byte is sent as a datagram, and nobody in this guest copies it (MSG_ZEROCOPY): the card is
 * given the page's guest-physical address. Whoever gets the datagram sends it back, and the byte in
 * what comes back is the one that the card has read. (Documentation/networking/msg_zerocopy.rst)
 */
#include <arpa/inet.h>
#include <linux/errqueue.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../probe.h"

enum { ECHO = 7, PATIENCE = 10000 /* milliseconds */ };

/* A socket to whoever sends datagrams back: in a guest the host, else a port of this machine. */
static int connect_to_echo(const char *port_here)
{
	struct sockaddr_in echo = { .sin_family = AF_INET };
	int wire = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), one = 1;

	if (wire < 0)
		return -1;
	inet_pton(AF_INET, port_here ? "127.0.0.1" : "192.0.2.1", &echo.sin_addr);
	echo.sin_port = htons(port_here ? atoi(port_here) : ECHO);
	if (!setsockopt(wire, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one)) &&
	    !connect(wire, (struct sockaddr *)&echo, sizeof(echo)))
		return wire;
	close_one(wire, TOUCHED_ERRNO);
	return -1;
}

/* Whether the card has read the page itself, as the kernel tells once it is done with it. */
static int was_read_in_place(int wire)
{
	struct pollfd told = { .fd = wire };
	char room[CMSG_SPACE(sizeof(struct sock_extended_err) + sizeof(struct sockaddr_in))];
	struct msghdr message = { .msg_control = room, .msg_controllen = sizeof(room) };
	struct sock_extended_err said;
	struct cmsghdr *head;

	errno = ETIME;
	if (poll(&told, 1, PATIENCE) != 1 || recvmsg(wire, &message, MSG_ERRQUEUE) < 0)
		return 0;
	head = CMSG_FIRSTHDR(&message);
	errno = EPROTO;
	if (!head)
		return 0;
	memcpy(&said, CMSG_DATA(head), sizeof(said));
	errno = EOPNOTSUPP;
	return said.ee_origin == SO_EE_ORIGIN_ZEROCOPY && !(said.ee_code & SO_EE_CODE_ZEROCOPY_COPIED);
}

static enum touched vhost(const struct place *place, unsigned int *value)
{
	const char *port_here = getenv("HOSTFAULT_ECHO"); /* where there is no guest, and no card */
	int wire = connect_to_echo(port_here);
	unsigned char byte;

	if (wire < 0)
		return TOUCHED_ERRNO;
	if (send(wire, (void *)place->byte, 1, MSG_ZEROCOPY) != 1 || recv(wire, &byte, 1, 0) != 1)
		return close_one(wire, TOUCHED_ERRNO);
	*value = byte;
	if (!port_here && !was_read_in_place(wire))
		return close_one(wire, TOUCHED_ERRNO);
	return close_one(wire, TOUCHED_VALUE);
}

ACCESS(vhost, .touch = vhost);
