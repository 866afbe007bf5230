// The instructions of AMX where the CPU has none: each raises SIGILL, and a handler computes what it would have done,
// over the portable model of csrc/cpu/tile_unit.h. So the machine code that a CPU with AMX runs is run by the tests.
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

namespace {

#define CK_TILE_MODEL 1
#include "cpu/tile_unit.h"

struct Tiles {
  bool configured = false;
  alignas(64) char tile[8][1024] = {};
};
thread_local Tiles tiles;
struct sigaction before;

// The operands of an instruction behind a three-byte VEX prefix.
struct Operands {
  int reg, rm, vvvv;
  bool in_register;
  char* address;  // else: of base, scaled index and displacement
  int64_t index;  // the index register: the step of a tile's rows
  int length;     // of the instruction
};

int64_t general(const ucontext_t& c, int number) {
  static const int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return c.uc_mcontext.gregs[place[number]];
}

Operands decode(const ucontext_t& c, const unsigned char* code) {
  Operands o = {};
  const int high_reg = code[1] & 0x80 ? 0 : 8, high_index = code[1] & 0x40 ? 0 : 8, high_base = code[1] & 0x20 ? 0 : 8;
  const int mode = code[4] >> 6, rm = code[4] & 7;
  o.reg = (code[4] >> 3 & 7) + high_reg, o.rm = rm + high_base, o.vvvv = ~code[2] >> 3 & 15, o.length = 5;
  o.in_register = mode == 3;
  if (o.in_register) return o;
  int64_t at = 0;
  bool base = true;
  int number = o.rm;
  if (rm == 4) {
    const unsigned char sib = code[o.length++];
    number = (sib & 7) + high_base, base = mode != 0 || (sib & 7) != 5;
    const int index = (sib >> 3 & 7) + high_index;
    if (index != 4) o.index = general(c, index) << (sib >> 6), at += o.index;
  }
  const bool relative = rm == 5 && mode == 0;  // to the next instruction
  if (base && !relative) at += general(c, number);
  if (mode == 1) {
    at += static_cast<signed char>(code[o.length++]);
  } else if (mode == 2 || relative || !base) {
    int32_t displacement;
    memcpy(&displacement, code + o.length, 4);
    at += displacement, o.length += 4;
  }
  if (relative) at += reinterpret_cast<int64_t>(code) + o.length;
  o.address = reinterpret_cast<char*>(at);
  return o;
}

// The configuration that the kernels use, 8 tiles of 16 rows of 64 bytes: anything else is their mistake.
bool as_expected(const char* shape) {
  char wanted[64] = {1};
  for (int t = 0; t < 8; t++) wanted[16 + 2 * t] = 64, wanted[48 + t] = 16;
  return memcmp(shape, wanted, sizeof wanted) == 0;
}

// Returns false for what is no instruction of a configured tile unit.
bool execute(ucontext_t& c) {
  const unsigned char* code = reinterpret_cast<const unsigned char*>(c.uc_mcontext.gregs[REG_RIP]);
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) return false;  // map 0F38, W0, 128 bits
  const int prefix = code[2] & 3, operation = code[3];                                  // 0, 66, F3, F2
  const Operands o = decode(c, code);
  TileUnit unit;
  if (operation == 0x49 && prefix == 0) {  // ldtilecfg, tilerelease
    if (!o.in_register && !as_expected(o.address)) return false;
    tiles = Tiles();
    tiles.configured = !o.in_register;
  } else if (!tiles.configured || o.reg > 7) {
    return false;
  } else if (operation == 0x49 && prefix == 3) {  // tilezero
    memset(tiles.tile[o.reg], 0, 1024);
  } else if (operation == 0x4b && prefix == 3) {  // tileloadd
    unit.load<0>(o.address - o.index, o.index);
    unit.store<0>(tiles.tile[o.reg], 64);
  } else if (operation == 0x4b && prefix == 2) {  // tilestored
    unit.load<0>(tiles.tile[o.reg], 64);
    unit.store<0>(o.address - o.index, o.index);
  } else if (operation == 0x5c && prefix == 2 && o.in_register && o.rm < 8 && o.vvvv < 8) {  // tdpbf16ps
    unit.load<0>(tiles.tile[o.reg], 64), unit.load<4>(tiles.tile[o.rm], 64), unit.load<6>(tiles.tile[o.vvvv], 64);
    unit.dot<0, 4, 6>();
    unit.store<0>(tiles.tile[o.reg], 64);
  } else {
    return false;
  }
  c.uc_mcontext.gregs[REG_RIP] += o.length;
  return true;
}

void handle(int, siginfo_t*, void* context) {
  if (!execute(*static_cast<ucontext_t*>(context))) abort();
}

}  // namespace

extern "C" void trap_tiles(void) {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, &before);
}
extern "C" void untrap_tiles(void) { sigaction(SIGILL, &before, nullptr); }
