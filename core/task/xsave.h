// The XSAVE area of a thread, to and from CRIU's fields.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "images/core-x86.pb.h"

namespace migrate {

/// Splits an XSAVE area (standard format, as PTRACE_GETREGSET NT_X86_XSTATE gives it) into CRIU's fields. Returns
/// false, with the component named in `unknown`, if a component is in use that has no field (AMX tiles, ...).
bool pack_xsave(std::span<const std::byte> area, img::user_x86_fpregs_entry& out, std::string& unknown);

/// The opposite: an area for PTRACE_SETREGSET NT_X86_XSTATE, laid out as this CPU wants it. Throws Corrupt for arrays
/// of wrong length, Refusal if the state has a component that this CPU does not have.
std::vector<std::byte> unpack_xsave(const img::user_x86_fpregs_entry& in);

}  // namespace migrate
