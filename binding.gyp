# For `node-gyp rebuild` and the tools that call it: the build is install/build.js's. The output is never made, so that it is
# install/build.js that decides what is up to date.
{
    'targets': [{
        'target_name': 'blockpruner',
        'type': 'none',
        'actions': [{
            'action_name': 'build',
            'message': 'Building the addon of blockpruner',
            'inputs': ['install/build.js'],
            'outputs': ['always'],
            'action': ['node', 'install/build.js']
        }]
    }]
}
