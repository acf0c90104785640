// Files of restored Unix sockets that wait under hidden names for the gate, and their removal by others when whoever
// made them was killed.
#pragma once

#include <string>
#include <vector>

#include "core/image/image_set.h"

namespace migrate {

/// The folders in which Unix sockets of these images have their names, absolute, each once. Throws Corrupt.
std::vector<std::string> unix_socket_folders(const ImageSet& images);

/// Removes what begins with `mark`-, in those folders below `root` ("": ours). What fails is left.
void remove_hidden_sockets(const std::vector<std::string>& folders, const std::string& root,
                           const std::string& mark) noexcept;

/// A file, or a folder with what is in it (a few levels).
void remove_tree_at(int folder, const std::string& name) noexcept;

}  // namespace migrate
