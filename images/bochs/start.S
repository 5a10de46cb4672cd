/*
 * An option ROM that starts Linux: Bochs has put the kernel, its initramfs and its boot parameters
 * into memory (optramimage), and the BIOS calls this as it calls the ROM of any card.
 *
 * What must hold at the kernel's 32-bit entry is in Documentation/arch/x86/boot.rst, "32-bit Boot
 * Protocol": flat segments with selectors 0x10 and 0x18, interrupts off, %esi the address of the
 * boot parameters, %ebp, %edi and %ebx zero. The format of the ROM (signature, size in units of
 * 512 bytes, entry at offset 3) is that of the BIOS Boot Specification, 1.01, appendix A.
 *
 * gcc -DBASE=... -DKERNEL=... -DPARAMETERS=...: addresses of this ROM, the kernel, the parameters.
 */
	.code16
	.globl	_start
_start:
	.byte	0x55, 0xaa, 1
	cli
	cld
	inb	$0x92, %al		/* A20 on, and no reset */
	orb	$0x02, %al
	andb	$0xfe, %al
	outb	%al, $0x92
	lgdtl	%cs:(table_register - _start)
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$0x10, $(BASE + (flat - _start))

	.code32
flat:
	movl	$0x18, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %fs
	movl	%eax, %gs
	movl	%eax, %ss
	xorl	%ebp, %ebp
	xorl	%edi, %edi
	xorl	%ebx, %ebx
	movl	$PARAMETERS, %esi
	movl	$KERNEL, %eax
	jmp	*%eax

	.balign	8
table:
	.quad	0, 0
	.quad	0x00cf9a000000ffff	/* 0x10: code, 4 GiB from 0 */
	.quad	0x00cf92000000ffff	/* 0x18: data, likewise */
table_register:
	.word	table_register - table - 1
	.long	BASE + (table - _start)
