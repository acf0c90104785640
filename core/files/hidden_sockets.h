// Folders of ours beside names of restored Unix sockets (core/files/unix_names.h), and their removal by others when
// whoever made them was killed.
#pragma once

#include <string>
#include <vector>

#include "core/image/image_set.h"

namespace migrate {

/// The folders in which Unix sockets of these images have their names, absolute, each once. Throws Corrupt.
std::vector<std::string> unix_socket_folders(const ImageSet& images);

/// The same as they are called here, where they are below `root` and links may lead elsewhere; as they are if not
/// there.
std::vector<std::string> real_folders(const std::vector<std::string>& folders, const std::string& root);

/// Removes what begins with `mark`-, in those folders below `root` ("": ours). What fails is left.
void remove_hidden_sockets(const std::vector<std::string>& folders, const std::string& root,
                           const std::string& mark) noexcept;

/// A socket, or a folder with the sockets and folders that are in it (a few levels). Anything else stays: somebody else
/// may have put it there.
void remove_tree_at(int folder, const std::string& name) noexcept;

}  // namespace migrate
